//! The kernel suite: the socket rows on every supported kernel series, each booted for it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::boot::{BOOTED, boot, init};
use super::initramfs::Initramfs;
use super::tally::Tally;
use super::{ROWS, test_program};
use crate::command::which;
use crate::progress::{say, spoken_step};
use crate::setup::kernels::{busybox, image, modules};
use crate::toolchain::Pins;
use crate::tree::Tree;

/// A machine emulated instruction by instruction, on a busy host.
const LIMIT: Duration = Duration::from_secs(480);

/// What busybox does in the booted machine. `ip` and `ss` are the real ones: the rows use more of them.
const APPLETS: [&str; 11] = [
    "sh", "mount", "umount", "uname", "echo", "cat", "ls", "sleep", "poweroff", "insmod", "xz",
];

/// Where the modules are.
const MODULES: &str = "modules";

pub(super) fn run(tree: &Tree, pins: &Pins, tally: &mut Tally) -> Result<()> {
    let program = test_program(tree, ROWS)?;
    let initramfs = tree.target.join("kernels/initramfs");
    let mut failed = Vec::new();
    for kernel in &pins.kernels {
        tally.name(&format!("Linux {}", kernel.series));
        let outcome = spoken_step(&format!("kernel: {}", kernel.series), || {
            let mut booted = false;
            fs::write(&initramfs, user_land(tree, &program, &kernel.series)?)
                .with_context(|| format!("cannot write {}", initramfs.display()))?;
            let status = boot(&image(tree, &kernel.series), &initramfs, LIMIT, |line| {
                booted |= line.contains(&format!("{BOOTED}{}.", kernel.series));
                say(line);
                tally.read(line);
            })?;
            ensure!(booted, "another kernel than {} was booted", kernel.series);
            ensure!(
                status == 0,
                "the rows ended with exit status {status} on Linux {}",
                kernel.series
            );
            Ok(())
        });
        if let Err(error) = outcome {
            failed.push(format!("Linux {}: {error:#}", kernel.series));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

fn user_land(tree: &Tree, program: &Path, series: &str) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    for directory in ["proc", "sys", "dev", "run", "tmp", "root"] {
        archive.directory(directory);
    }
    archive.program("bin/busybox", &busybox(tree))?;
    for applet in APPLETS {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    for (place, program) in [("sbin/ip", "ip"), ("bin/ss", "ss")] {
        let installed = which(program)
            .with_context(|| format!("{program} is not installed: cargo xtask setup lab"))?;
        archive.program(place, &installed)?;
    }
    archive.program("bin/rows", program)?;
    let mut load = String::new();
    for module in modules(tree, series) {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        let contents =
            fs::read(&module).with_context(|| format!("cannot read {}", module.display()))?;
        archive.file(&format!("{MODULES}/{name}"), &contents);
        load.push_str(&match name.strip_suffix(".xz") {
            Some(plain) => {
                format!("xz -dc /{MODULES}/{name} > /tmp/{plain}\ninsmod /tmp/{plain}\n")
            }
            None => format!("insmod /{MODULES}/{name}\n"),
        });
    }
    archive.file("init", init(&load, "/bin/rows").as_bytes());
    Ok(archive.finish())
}
