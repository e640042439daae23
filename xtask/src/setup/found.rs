//! What this machine has.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Pair, Part, kernels};
use crate::command::{forget_host_toolchain, output, which};
use crate::toolchain::{Choice, Compiler, KernelPackage, Pins, Provided, Version, Ways, choose};
use crate::tree::Tree;

/// What was looked for is decided by the parts: of other parts nothing is known, and nothing counts as missing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found {
    pub(crate) compilers: Vec<Compiler>,
    pub(crate) linkers: Vec<Linker>,
    pub(crate) missing_programs: Vec<Provided>,
    pub(crate) missing_kernels: Vec<KernelPackage>,
    pub(crate) missing_busybox: bool,
    pub(crate) installed_packages: Vec<String>,
    pub(crate) deny: bool,
}

/// A bpf-linker on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Linker {
    pub(crate) path: PathBuf,
    pub(crate) version: Version,
    /// The compilers whose bitcode it was seen to read.
    pub(crate) reads: Vec<PathBuf>,
}

impl Linker {
    pub(crate) fn serves(&self, pins: &Pins, compiler: &Compiler) -> bool {
        self.version == pins.linker && self.reads.contains(&compiler.rustc)
    }
}

impl Found {
    pub(crate) fn look(tree: &Tree, pins: &Pins, parts: &[Part]) -> Result<Self> {
        let mut found = Self::default();
        if parts.contains(&Part::Build) {
            found.compilers = compilers(tree);
            found.linkers = linkers(tree, &found.compilers)?;
            found.installed_packages = installed(&pins.linker_packages);
        }
        let absent = |programs: &[Provided]| {
            programs
                .iter()
                .filter(|it| which(&it.program).is_none())
                .cloned()
                .collect::<Vec<_>>()
        };
        if parts.contains(&Part::Lab) {
            found.missing_programs.extend(absent(&pins.lab_programs));
        }
        if parts.contains(&Part::Fuzz) {
            found.missing_programs.extend(absent(&pins.fuzz_programs));
        }
        if parts.contains(&Part::Kernels) {
            found.missing_programs.extend(absent(&pins.kernel_programs));
            found.missing_kernels = pins
                .kernels
                .iter()
                .filter(|kernel| !kernels::is_there(tree, &kernel.series))
                .cloned()
                .collect();
            found.missing_busybox = !kernels::busybox(tree).is_file();
        }
        if parts.contains(&Part::Check) {
            found.deny = version_of(&tree.tools().join("bin/cargo-deny")) == Some(pins.deny);
        }
        Ok(found)
    }

    pub(crate) fn missing_packages(&self, wanted: &[String]) -> Vec<String> {
        wanted
            .iter()
            .filter(|name| !self.installed_packages.contains(name))
            .cloned()
            .collect()
    }

    /// The pair to build with, once nothing is missing.
    pub(crate) fn pair(&self, pins: &Pins, ways: Ways) -> Option<Pair> {
        let Choice::Use(compiler) = choose(pins, &self.compilers, ways) else {
            return None;
        };
        let linker = self
            .linkers
            .iter()
            .find(|linker| linker.serves(pins, &compiler))?
            .path
            .clone();
        Some(Pair { compiler, linker })
    }
}

fn compilers(tree: &Tree) -> Vec<Compiler> {
    let rustup = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(tree.caller.home()?.join(".rustup")));
    let directories = rustup.and_then(|home| fs::read_dir(home.join("toolchains")).ok());
    let mut names: Vec<OsString> = directories
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().into_os_string())
        .collect();
    names.sort();
    let mut found: Vec<Compiler> = names
        .iter()
        .map(Path::new)
        .filter_map(|sysroot| {
            Compiler::look(sysroot.file_name().and_then(|name| name.to_str()), sysroot)
        })
        .collect();
    found.extend(Compiler::look(None, Path::new("/usr")));
    found
}

fn linkers(tree: &Tree, compilers: &[Compiler]) -> Result<Vec<Linker>> {
    let mut paths = vec![tree.tools().join("bin/bpf-linker")];
    paths.extend(which("bpf-linker"));
    let mut linkers: Vec<Linker> = paths
        .into_iter()
        .filter_map(|path| {
            Some(Linker {
                version: version_of(&path)?,
                path,
                reads: Vec::new(),
            })
        })
        .collect();
    if linkers.is_empty() {
        return Ok(linkers);
    }
    let scratch = scratch()?;
    for compiler in compilers.iter().filter(|compiler| compiler.sources) {
        let bitcode = scratch.join("probe.bc");
        if write_bitcode(compiler, &scratch, &bitcode).is_err() {
            continue;
        }
        for linker in &mut linkers {
            let mut link = Command::new(&linker.path);
            link.args(["--target", "bpfel", "--emit", "llvm-bc", "--output"])
                .arg(scratch.join("linked.bc"))
                .arg(&bitcode);
            if output(&mut link).is_ok() {
                linker.reads.push(compiler.rustc.clone());
            }
        }
    }
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))?;
    Ok(linkers)
}

/// A version number proves little: a linker may be built on any LLVM. So each is given what each compiler writes.
fn write_bitcode(compiler: &Compiler, scratch: &Path, bitcode: &Path) -> Result<()> {
    let source = scratch.join("probe.rs");
    fs::write(
        &source,
        "#![no_std]\npub fn word(a: u64) -> u64 {\n    a ^ (a >> 3)\n}\n",
    )?;
    let mut compile = Command::new(&compiler.rustc);
    compile
        .args([
            "--edition",
            "2024",
            "--crate-type",
            "lib",
            "--emit",
            "llvm-bc",
            "-C",
            "panic=abort",
            "-o",
        ])
        .arg(bitcode)
        .arg(source);
    forget_host_toolchain(&mut compile);
    output(&mut compile).map(drop)
}

fn scratch() -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("isthmus-setup-{}", std::process::id()));
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

/// The version in `NAME 1.2.3`, as `PROGRAM --version` prints it.
fn version_of(program: &Path) -> Option<Version> {
    if !program.is_file() {
        return None;
    }
    output(Command::new(program).arg("--version"))
        .ok()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
}

/// Those of `names` that dpkg has installed.
fn installed(names: &[String]) -> Vec<String> {
    let mut query = Command::new("dpkg-query");
    query
        .args([
            "--show",
            "--showformat",
            "${db:Status-Status} ${Package}\\n",
        ])
        .args(names);
    // It fails when it does not know one of the names, and tells about the others all the same.
    let Ok(output) = query.output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .map(str::to_owned)
        .collect()
}
