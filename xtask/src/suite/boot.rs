//! Booting a kernel in an emulator, for one program, with its console as the only way out.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::command::{run_lines, which};

/// What `init` says before it starts the program: the kernel's release follows.
pub(super) const BOOTED: &str = "booted Linux ";

/// What `init` says when the program has ended: its exit status follows.
const ENDED: &str = "isthmus-booted-program ended with ";

/// The first process of a booted machine: it mounts what an agent expects of a host, prepares, runs the program, and
/// switches off.
pub(super) fn init(prepare: &str, program: &str) -> String {
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
         ulimit -n 65536\n\
         {prepare}\
         echo \"{BOOTED}$(uname -r)\"\n\
         {program}\n\
         echo \"{ENDED}$?\"\n\
         poweroff -f\n"
    )
}

/// How a boot ended.
#[derive(Debug, PartialEq, Eq)]
enum Ending {
    Program {
        status: i32,
    },
    /// The program was never started.
    NotBooted {
        cause: String,
    },
    /// It was started, and nothing is known of its end.
    Lost {
        cause: String,
    },
}

/// Boots, gives each line of the console, and answers with the program's exit status. `limit` bounds it all.
///
/// The machine is emulated, though KVM may be there: a nested KVM that starts a machine and then stops it half-way is
/// worse than none, and an emulated boot takes two seconds.
pub(super) fn boot(
    kernel: &Path,
    initramfs: &Path,
    limit: Duration,
    mut each: impl FnMut(&str),
) -> Result<i32> {
    let emulator = which("qemu-system-x86_64")
        .context("qemu-system-x86_64 is not installed: cargo xtask setup kernels")?;
    // The machine may not outlive its limit, whatever happens to this process.
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=5")
        .arg(limit.as_secs().to_string())
        .arg(emulator);
    command.args([
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
    ]);
    command.args(["-serial", "stdio"]);
    command
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs);
    command.args([
        "-append",
        "console=ttyS0 quiet loglevel=3 panic=-1 rdinit=/init",
    ]);
    match attend(&mut command, &mut each)? {
        Ending::Program { status } => Ok(status),
        Ending::NotBooted { cause } => bail!("the kernel does not boot: {cause}"),
        Ending::Lost { cause } => bail!("the machine stopped before its program did: {cause}"),
    }
}

fn attend(command: &mut Command, each: &mut impl FnMut(&str)) -> Result<Ending> {
    let mut booted = false;
    let mut ended = None;
    let mut last = String::new();
    let status = run_lines(command, |line| {
        booted |= line.contains(BOOTED);
        line.clone_into(&mut last);
        match line.split_once(ENDED) {
            Some((_, status)) => ended = status.trim().parse().ok(),
            None => each(line),
        }
    })?;
    // timeout(1) ends with 124 when it had to end its command.
    let cause = match status.code() {
        Some(124 | 137) => "its time was over".to_owned(),
        _ => format!("{status}, and the last line was: {last}"),
    };
    Ok(match ended {
        Some(status) => Ending::Program { status },
        None if booted => Ending::Lost { cause },
        None => Ending::NotBooted { cause },
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use super::*;

    fn ending(script: &str) -> (Ending, Vec<String>) {
        let mut lines = Vec::new();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let ending = attend(&mut command, &mut |line| lines.push(line.to_owned())).unwrap();
        (ending, lines)
    }

    #[test]
    fn a_console_tells_how_its_machine_ended() {
        let script = format!("echo noise; echo '{BOOTED}6.1.0'; echo row; echo '{ENDED}3'");
        let (how, lines) = ending(&script);
        assert_eq!(how, Ending::Program { status: 3 });
        assert_eq!(lines, ["noise", "booted Linux 6.1.0", "row"]);
        assert!(
            matches!(ending("echo no such device; exit 1").0, Ending::NotBooted { cause } if cause.contains("no such device"))
        );
        assert!(
            matches!(ending(&format!("echo '{BOOTED}6.1.0'; exit 124")).0, Ending::Lost { cause } if cause.contains("time"))
        );
    }
}
