//! The kernels that the kernel suite boots, unpacked from Debian's packages: nothing is installed, and fetching needs no root.

use std::cmp::Reverse;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::action::update_lists;
use crate::command::{output, run_quietly};
use crate::toolchain::KernelPackage;
use crate::tree::Tree;

/// The kernel of a series, once it is fetched.
pub(crate) fn image(tree: &Tree, series: &str) -> PathBuf {
    directory(tree).join(format!("vmlinuz-{series}"))
}

/// Modules of a kernel that the rows need, in the order of loading: a host loads them when somebody asks.
const MODULES: [&str; 3] = ["inet_diag", "tcp_diag", "udp_diag"];

/// The files of these modules, perhaps compressed, once they are fetched; none of one that is not.
pub(crate) fn modules(tree: &Tree, series: &str) -> Vec<PathBuf> {
    let shelf = shelf(tree, series);
    let file = |name: &str| {
        ["ko", "ko.xz"]
            .map(|end| shelf.join(format!("{name}.{end}")))
            .into_iter()
            .find(|file| file.is_file())
    };
    MODULES.into_iter().filter_map(file).collect()
}

fn shelf(tree: &Tree, series: &str) -> PathBuf {
    directory(tree).join(format!("modules-{series}"))
}

/// Whether the kernel and its modules are fetched.
pub(crate) fn is_there(tree: &Tree, series: &str) -> bool {
    image(tree, series).is_file() && modules(tree, series).len() == MODULES.len()
}

/// A static busybox, once it is fetched.
pub(crate) fn busybox(tree: &Tree) -> PathBuf {
    directory(tree).join("busybox")
}

fn directory(tree: &Tree) -> PathBuf {
    tree.target.join("kernels")
}

pub(crate) fn fetch_kernel(tree: &Tree, kernel: &KernelPackage) -> Result<()> {
    let newest = |tree: &Tree| -> Result<Option<String>> {
        let names = output(
            tree.caller
                .user("apt-cache")
                .args(["pkgnames", &kernel.prefix]),
        )?;
        Ok(newest(kernel, names.lines()))
    };
    let package = match newest(tree)? {
        Some(package) => package,
        None => {
            update_lists(tree)?;
            newest(tree)?.with_context(|| {
                format!(
                    "apt knows no package {}…{}. Debian 12 has it; elsewhere put a kernel image at {}",
                    kernel.prefix,
                    kernel.suffix,
                    image(tree, &kernel.series).display()
                )
            })?
        }
    };
    fetch(tree, &package, |unpacked| {
        let modules = shelf(tree, &kernel.series);
        run_quietly(tree.caller.user("mkdir").arg("--parents").arg(&modules))?;
        for name in MODULES {
            for version in entries(&unpacked.join("lib/modules"))? {
                let drivers = unpacked.join(format!("lib/modules/{version}/kernel/net/ipv4"));
                for file in entries(&drivers)? {
                    if file.split_once('.').is_some_and(|(stem, _)| stem == name) {
                        take(&drivers, |other| other == file, &modules.join(&file))?;
                    }
                }
            }
        }
        take(
            &unpacked.join("boot"),
            |file| file.starts_with("vmlinuz-"),
            &image(tree, &kernel.series),
        )
    })?;
    anyhow::ensure!(
        is_there(tree, &kernel.series),
        "{package} lacks one of the modules {}",
        MODULES.join(", ")
    );
    Ok(())
}

pub(crate) fn fetch_busybox(tree: &Tree, package: &str) -> Result<()> {
    fetch(tree, package, |unpacked| {
        take(
            &unpacked.join("bin"),
            |file| file == "busybox",
            &busybox(tree),
        )
    })
}

/// The newest package of a series: the numbers between the name's beginning and its end decide.
fn newest<'a>(kernel: &KernelPackage, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let numbers = |name: &str| -> Option<Vec<u64>> {
        let middle = name
            .strip_prefix(&kernel.prefix)?
            .strip_suffix(&kernel.suffix)?;
        Some(
            middle
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .collect(),
        )
    };
    let mut candidates: Vec<(Vec<u64>, &str)> = names
        .filter_map(|name| Some((numbers(name)?, name)))
        .collect();
    candidates.sort_by_key(|(numbers, _)| Reverse(numbers.clone()));
    candidates.first().map(|(_, name)| (*name).to_owned())
}

/// Downloads and unpacks a package, has `use_it` take what it wants, and forgets the rest.
fn fetch(tree: &Tree, package: &str, use_it: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let scratch = directory(tree).join(format!("fetch-{package}"));
    run_quietly(tree.caller.user("mkdir").arg("--parents").arg(&scratch))?;
    let download = |tree: &Tree| {
        run_quietly(
            tree.caller
                .user("apt-get")
                .current_dir(&scratch)
                .args(["download", package]),
        )
    };
    if download(tree).is_err() {
        // The lists may name a revision that has left the archive.
        update_lists(tree)?;
        download(tree)?;
    }
    let archive = entries(&scratch)?
        .into_iter()
        .find(|name| name.ends_with(".deb"));
    let archive = archive.with_context(|| {
        format!(
            "apt-get download {package} left no package in {}",
            scratch.display()
        )
    })?;
    run_quietly(tree.caller.user("dpkg-deb").current_dir(&scratch).args([
        "--extract",
        &archive,
        ".",
    ]))?;
    use_it(&scratch)?;
    fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()))
}

/// Moves a file of a directory.
fn take(from: &Path, wanted: impl Fn(&str) -> bool, to: &Path) -> Result<()> {
    let file = entries(from)?.into_iter().find(|name| wanted(name));
    let file = file.with_context(|| format!("no such file in {}", from.display()))?;
    fs::rename(from.join(file), to).with_context(|| format!("cannot write {}", to.display()))
}

fn entries(directory: &Path) -> Result<Vec<String>> {
    let read =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    Ok(read
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_of_a_series_is_found_by_number() {
        let kernel = KernelPackage {
            series: "6.12".into(),
            prefix: "linux-image-6.12.".into(),
            suffix: "-cloud-amd64".into(),
        };
        let names = [
            "linux-image-6.12.9+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.118+deb12-cloud-amd64-unsigned",
            "linux-image-6.12.119+deb12-amd64",
            "linux-image-6.12-cloud-amd64",
        ];
        assert_eq!(
            newest(&kernel, names.into_iter()).as_deref(),
            Some(names[1])
        );
        assert_eq!(
            newest(&kernel, ["linux-image-6.1.0-56-cloud-amd64"].into_iter()),
            None
        );
    }
}
