//! The toolchain pair: what is pinned, what this machine has, and which compiler the eBPF programs get.
//!
//! Facts and the choice are values, so that a choice can be printed and tested without a machine that has the case.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context as _, Error, Result, ensure};
use toml::{Table, Value};

/// What `toolchain.toml` says.
#[derive(Debug, Clone)]
pub(crate) struct Pins {
    pub(crate) host: Version,
    pub(crate) ebpf: Version,
    pub(crate) linker: Version,
    pub(crate) llvm: u64,
    pub(crate) deny: Version,
    pub(crate) linker_packages: Vec<String>,
    pub(crate) compiler_packages: Vec<String>,
    pub(crate) busybox_package: String,
    pub(crate) lab_programs: Vec<Provided>,
    pub(crate) fuzz_programs: Vec<Provided>,
    pub(crate) kernel_programs: Vec<Provided>,
    pub(crate) kernels: Vec<KernelPackage>,
}

/// A program, and the package that brings it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Provided {
    pub(crate) program: String,
    pub(crate) package: String,
}

/// A kernel series, and how the names of its packages begin and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelPackage {
    pub(crate) series: String,
    pub(crate) prefix: String,
    pub(crate) suffix: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(u64, u64, u64);

/// A compiler on this machine that could build the eBPF programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Compiler {
    /// rustup's name of it, or none for the system's own.
    pub(crate) toolchain: Option<String>,
    pub(crate) cargo: PathBuf,
    pub(crate) rustc: PathBuf,
    pub(crate) release: Version,
    /// The major version of its LLVM.
    pub(crate) llvm: u64,
    /// The standard library's sources are there: the BPF target has no ready-made one.
    pub(crate) sources: bool,
}

/// What to do for a compiler of the eBPF programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Choice {
    Use(Compiler),
    /// `rustup component add rust-src`
    AddSources {
        toolchain: String,
    },
    /// `rustup toolchain install`
    AddToolchain {
        release: Version,
    },
    /// The distribution's compiler and its sources.
    AddPackages,
    /// Neither rustup nor apt can bring one.
    Nothing,
}

/// Ways to get a compiler. A way that was tried and failed is closed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ways {
    pub(crate) rustup: bool,
    pub(crate) apt: bool,
}

/// Prefers the pinned release, then any newer compiler that is ready, then what takes least to get ready.
pub(crate) fn choose(pins: &Pins, compilers: &[Compiler], ways: Ways) -> Choice {
    let fits = |compiler: &&Compiler| compiler.release >= pins.ebpf && compiler.llvm <= pins.llvm;
    let pinned = |compiler: &&Compiler| compiler.release == pins.ebpf;
    let ready = || {
        compilers
            .iter()
            .filter(fits)
            .filter(|compiler| compiler.sources)
    };
    if let Some(compiler) = ready().find(pinned).or_else(|| ready().next()) {
        return Choice::Use(compiler.clone());
    }
    if ways.rustup {
        let mut near = compilers.iter().filter(fits).filter(pinned);
        return match near.find_map(|compiler| compiler.toolchain.clone()) {
            Some(toolchain) => Choice::AddSources { toolchain },
            None => Choice::AddToolchain { release: pins.ebpf },
        };
    }
    if ways.apt {
        Choice::AddPackages
    } else {
        Choice::Nothing
    }
}

impl Pins {
    pub(crate) fn read() -> Result<Self> {
        Self::parse(include_str!("../toolchain.toml")).context("xtask/toolchain.toml")
    }

    fn parse(text: &str) -> Result<Self> {
        let file: Table = text.parse()?;
        let kernels = table(&file, "kernels")?
            .iter()
            .map(|(series, ends)| match list(ends)?.as_slice() {
                [prefix, suffix] => Ok(KernelPackage {
                    series: series.clone(),
                    prefix: prefix.clone(),
                    suffix: suffix.clone(),
                }),
                other => Err(Error::msg(format!(
                    "kernels.{series}: a beginning and an end are wanted, not {other:?}"
                ))),
            })
            .collect::<Result<_>>()?;
        let packages = table(&file, "packages")?;
        Ok(Self {
            host: string(table(&file, "host")?, "rust")?.parse()?,
            ebpf: string(table(&file, "ebpf")?, "rust")?.parse()?,
            linker: string(table(&file, "ebpf")?, "bpf-linker")?.parse()?,
            llvm: table(&file, "ebpf")?
                .get("llvm")
                .and_then(Value::as_integer)
                .and_then(|major| u64::try_from(major).ok())
                .context("ebpf.llvm: a number is wanted")?,
            deny: string(table(&file, "check")?, "cargo-deny")?.parse()?,
            linker_packages: list(
                packages
                    .get("linker")
                    .context("packages.linker is missing")?,
            )?,
            compiler_packages: list(
                packages
                    .get("compiler")
                    .context("packages.compiler is missing")?,
            )?,
            busybox_package: string(packages, "busybox")?.to_owned(),
            lab_programs: provided(table(packages, "lab")?)?,
            fuzz_programs: provided(table(packages, "fuzz")?)?,
            kernel_programs: provided(table(packages, "kernels")?)?,
            kernels,
        })
    }

    /// Where the packaged LLVM keeps its `llvm-config`.
    pub(crate) fn llvm_bin(&self) -> PathBuf {
        PathBuf::from(format!("/usr/lib/llvm-{}/bin", self.llvm))
    }
}

fn table<'a>(file: &'a Table, name: &str) -> Result<&'a Table> {
    file.get(name)
        .and_then(Value::as_table)
        .with_context(|| format!("[{name}] is missing"))
}

fn string<'a>(file: &'a Table, name: &str) -> Result<&'a str> {
    file.get(name)
        .and_then(Value::as_str)
        .with_context(|| format!("{name}: a string is wanted"))
}

fn list(value: &Value) -> Result<Vec<String>> {
    let items = value.as_array().context("a list is wanted")?;
    items
        .iter()
        .map(|item| {
            Ok(item
                .as_str()
                .context("a list of strings is wanted")?
                .to_owned())
        })
        .collect()
}

fn provided(programs: &Table) -> Result<Vec<Provided>> {
    let one = |(program, package): (&String, &Value)| {
        let package = package
            .as_str()
            .with_context(|| format!("{program}: a package's name is wanted"))?;
        Ok(Provided {
            program: program.clone(),
            package: package.to_owned(),
        })
    };
    programs.iter().map(one).collect()
}

impl FromStr for Version {
    type Err = Error;

    /// `1.95.0`, and what compilers add to it: `1.97.0-nightly`.
    fn from_str(text: &str) -> Result<Self> {
        let plain = text.split(['-', '+']).next().unwrap_or_default();
        let parts: Vec<u64> = plain
            .split('.')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .with_context(|| format!("{text:?} is not a version"))?;
        ensure!((2..=3).contains(&parts.len()), "{text:?} is not a version");
        Ok(Self(parts[0], parts[1], parts.get(2).copied().unwrap_or(0)))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl Compiler {
    /// Looks at the compiler below `sysroot`. None if there is none, or it does not say what it is.
    pub(crate) fn look(toolchain: Option<&str>, sysroot: &Path) -> Option<Self> {
        let (rustc, cargo) = (sysroot.join("bin/rustc"), sysroot.join("bin/cargo"));
        if !rustc.is_file() || !cargo.is_file() {
            return None;
        }
        let mut command = Command::new(&rustc);
        command.arg("-vV");
        crate::command::forget_host_toolchain(&mut command);
        let (release, llvm) = release_and_llvm(&crate::command::output(&mut command).ok()?).ok()?;
        let sources = sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .is_file();
        Some(Self {
            toolchain: toolchain.map(str::to_owned),
            cargo,
            rustc,
            release,
            llvm,
            sources,
        })
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self
            .toolchain
            .as_deref()
            .map_or("the system's".to_owned(), |name| format!("rustup's {name}"));
        write!(
            f,
            "rustc {} with LLVM {} ({owner})",
            self.release, self.llvm
        )
    }
}

/// Reads `rustc -vV`.
fn release_and_llvm(text: &str) -> Result<(Version, u64)> {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let release = field("release:")
        .context("rustc -vV says no release")?
        .parse()?;
    let llvm: Version = field("LLVM version:")
        .context("rustc -vV says no LLVM version")?
        .parse()?;
    Ok((release, llvm.0))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    fn compiler(toolchain: Option<&str>, release: &str, llvm: u64, sources: bool) -> Compiler {
        let (cargo, rustc) = ("cargo".into(), "rustc".into());
        Compiler {
            toolchain: toolchain.map(str::to_owned),
            cargo,
            rustc,
            release: release.parse().unwrap(),
            llvm,
            sources,
        }
    }

    const ALL: Ways = Ways {
        rustup: true,
        apt: true,
    };

    #[test]
    fn the_pins_read_and_agree_with_the_workspace() {
        let pins = Pins::read().unwrap();
        let workspace: Table = include_str!("../../Cargo.toml").parse().unwrap();
        let oldest: Version = workspace["workspace"]["package"]["rust-version"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(pins.host, oldest);
        assert!(
            pins.linker_packages
                .contains(&format!("llvm-{}-dev", pins.llvm))
        );
        assert_eq!(
            pins.kernels
                .iter()
                .map(|kernel| kernel.series.as_str())
                .collect::<Vec<_>>(),
            ["6.1", "6.12"]
        );
        // It goes into the booted machines too, and somebody may ask for these alone.
        assert!(pins.kernel_programs.iter().any(|it| it.program == "ip"));
    }

    #[test]
    fn versions_order_by_number() {
        let version = |text: &str| text.parse::<Version>().unwrap();
        assert!(version("1.100.0") > version("1.95.0"));
        assert_eq!(version("1.97.0-nightly"), version("1.97"));
        assert!("1.x.0".parse::<Version>().is_err() && "1".parse::<Version>().is_err());
    }

    #[test]
    fn a_compiler_says_its_release_and_llvm() {
        let text = "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(
            release_and_llvm(text).unwrap(),
            ("1.95.0".parse().unwrap(), 22)
        );
        assert!(release_and_llvm("rustc 1.95.0").is_err());
    }

    #[test]
    fn the_choice_of_a_compiler() {
        let pins = Pins::read().unwrap();
        let pinned = compiler(Some("1.95.0"), "1.95.0", 22, true);
        let bare = compiler(Some("stable"), "1.95.0", 22, false);
        let system = compiler(None, "1.96.0", 22, true);
        let too_new = compiler(Some("nightly"), "1.99.0", 23, true);
        let too_old = compiler(None, "1.63.0", 14, true);
        let closed = Ways {
            rustup: false,
            apt: true,
        };
        let nothing = Ways {
            rustup: false,
            apt: false,
        };
        let cases = [
            (
                "the pinned one is ready",
                vec![system.clone(), pinned.clone()],
                ALL,
                Choice::Use(pinned.clone()),
            ),
            (
                "the pinned one lacks its sources",
                vec![bare.clone()],
                ALL,
                Choice::AddSources {
                    toolchain: "stable".into(),
                },
            ),
            (
                "rustup cannot bring them",
                vec![bare.clone()],
                closed,
                Choice::AddPackages,
            ),
            (
                "a newer one is ready",
                vec![bare.clone(), system.clone()],
                ALL,
                Choice::Use(system),
            ),
            (
                "none fits: bitcode too new, library too old",
                vec![too_new.clone(), too_old.clone()],
                ALL,
                Choice::AddToolchain { release: pins.ebpf },
            ),
            (
                "none fits and no rustup",
                vec![too_new.clone(), too_old, bare.clone()],
                closed,
                Choice::AddPackages,
            ),
            (
                "none fits and no way",
                vec![too_new, bare],
                nothing,
                Choice::Nothing,
            ),
            ("an empty machine", vec![], nothing, Choice::Nothing),
        ];
        for (case, compilers, ways, wanted) in cases {
            assert_eq!(choose(&pins, &compilers, ways), wanted, "{case}");
        }
    }
}
