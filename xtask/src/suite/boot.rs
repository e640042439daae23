//! Booting a kernel in an emulator, for one program, with its console as the only way out.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::command::{line, run_lines, which};

/// What `init` says when the program has ended: its exit status follows.
const ENDED: &str = "isthmus-booted-program ended with ";

/// The first process of a booted machine: it mounts what an agent expects of a host, runs the program, and switches off.
pub(super) fn init(program: &str) -> String {
    format!(
        "#!/bin/sh\n\
         export PATH=/bin:/sbin HOME=/root\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t tmpfs run /run\n\
         mount -t tmpfs tmp /tmp\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         ip link set lo up\n\
         echo \"booted Linux $(uname -r)\"\n\
         {program}\n\
         echo \"{ENDED}$?\"\n\
         poweroff -f\n"
    )
}

/// Boots, gives each line of the console, and answers with the program's exit status. `limit` bounds it all.
pub(super) fn boot(
    kernel: &Path,
    initramfs: &Path,
    limit: Duration,
    mut each: impl FnMut(&str),
) -> Result<i32> {
    let emulator = which("qemu-system-x86_64")
        .context("qemu-system-x86_64 is not installed: cargo xtask setup kernels")?;
    let mut command = Command::new("timeout");
    // qemu reads keys from nobody and may not outlive its limit, whatever happens to this process.
    command
        .arg("--kill-after=5")
        .arg(limit.as_secs().to_string())
        .arg(emulator);
    // KVM where it works, emulation where not: qemu goes down the list by itself.
    command.args([
        "-accel",
        "kvm",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
    ]);
    command.args([
        "-nodefaults",
        "-no-user-config",
        "-no-reboot",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-kernel",
    ]);
    command.arg(kernel).arg("-initrd").arg(initramfs);
    command.args([
        "-append",
        "console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/init",
    ]);
    let begun = Instant::now();
    let mut ended = None;
    let status = run_lines(&mut command, |line| {
        // The console may hold what the firmware wrote before.
        match line.split_once(ENDED) {
            Some((_, status)) => ended = status.trim().parse().ok(),
            None => each(line),
        }
    })?;
    match ended {
        Some(status) => Ok(status),
        None if begun.elapsed() >= limit => bail!(
            "the booted machine did not finish within {} s",
            limit.as_secs()
        ),
        None => bail!(
            "the booted machine ended ({status}) before its program did: {}",
            line(&command)
        ),
    }
}
