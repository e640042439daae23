//! `isthmus-fuzz TARGET PATH...` tries kept inputs, files or whole directories; `isthmus-fuzz seeds` writes those that are
//! made, not found. Built with `--cfg fuzzing` it is libFuzzer instead, and searches for the target that the environment
//! names.
#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod search {
    use std::sync::LazyLock;

    use isthmus_fuzz::Target;

    static TARGET: LazyLock<Target> = LazyLock::new(|| {
        let name = std::env::var("ISTHMUS_FUZZ").unwrap_or_default();
        Target::named(&name).unwrap_or_else(|| panic!("ISTHMUS_FUZZ={name:?} names no target"))
    });

    libfuzzer_sys::fuzz_target!(|input: &[u8]| TARGET.check(input));
}

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    replay::main()
}

#[cfg(not(fuzzing))]
mod replay {
    use std::io::{self, Write as _};
    use std::path::{Path, PathBuf};
    use std::process::ExitCode;
    use std::{env, fs, panic};

    use isthmus_fuzz::{Target, corpus, seeds};

    const HELP: &str =
        "isthmus-fuzz TARGET PATH...: tries inputs; isthmus-fuzz seeds: writes the made ones";

    pub(super) fn main() -> ExitCode {
        let mut arguments = env::args().skip(1);
        let command = arguments.next().unwrap_or_default();
        let paths: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
        let outcome = match (command.as_str(), Target::named(&command)) {
            ("seeds", _) => write_seeds(),
            (_, Some(target)) => try_all(target, &paths),
            (_, None) => Err(io::Error::other(HELP)),
        };
        match outcome {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                let _ = writeln!(io::stderr(), "Error: {error}");
                ExitCode::from(2)
            }
        }
    }

    fn write_seeds() -> io::Result<bool> {
        for seed in seeds::made() {
            let directory = corpus().join(seed.target.name());
            fs::create_dir_all(&directory)?;
            fs::write(directory.join(format!("seed-{}", seed.name)), seed.input)?;
        }
        Ok(true)
    }

    fn try_all(target: Target, paths: &[PathBuf]) -> io::Result<bool> {
        let (mut passed, mut failed) = (0, 0);
        for path in paths {
            for file in files(path)? {
                let input = fs::read(&file)?;
                if panic::catch_unwind(|| target.check(&input)).is_ok() {
                    passed += 1;
                } else {
                    failed += 1;
                    writeln!(io::stdout(), "FAILED {}", file.display())?;
                }
            }
        }
        writeln!(io::stdout(), "{passed} passed, {failed} failed, 0 skipped")?;
        Ok(failed == 0 && passed > 0)
    }

    fn files(path: &Path) -> io::Result<Vec<PathBuf>> {
        if !path.is_dir() {
            return Ok(vec![path.to_path_buf()]);
        }
        let mut files = fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()?;
        files.sort();
        Ok(files)
    }
}
