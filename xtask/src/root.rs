//! Asking for root: once, in words, and with a way out for who gets none.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};

use crate::command::which;
use crate::progress::{aside, say};

/// What root is wanted for.
#[derive(Debug, Clone)]
pub(crate) struct Need {
    /// Completes the sentence "Root is needed …", said before the first password.
    pub(crate) reason: &'static str,
    /// What a reader types as root where sudo gives none, line by line. Root has no cargo as a rule, so it does without.
    pub(crate) by_hand: String,
}

/// The last line of what is done by hand for a command that goes on afterwards.
pub(crate) const THEN_AGAIN: &str = "then, as yourself, the same command again";

impl Need {
    fn unmet(&self, cause: &str) -> Error {
        let mut report = format!("root is needed {}, and {cause}. As root:", self.reason);
        for line in self.by_hand.lines() {
            report.push_str("\n    ");
            report.push_str(line);
        }
        Error::msg(report)
    }
}

/// Asks for root once and keeps it until this process ends.
pub(crate) fn obtain(need: &Need) -> Result<()> {
    static OBTAINED: OnceLock<()> = OnceLock::new();
    if OBTAINED.get().is_some() {
        return Ok(());
    }
    let sudo = which("sudo").ok_or_else(|| need.unmet("sudo is not installed"))?;
    let refusal = aside(|| {
        say(&format!("Root is needed {}.", need.reason));
        ask(&sudo, std::io::stdin().is_terminal())
    })?;
    if let Some(cause) = refusal {
        return Err(need.unmet(&cause));
    }
    // sudo forgets after some minutes; a build can take longer. The thread ends with the process.
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(60));
            let refreshed = Command::new(&sudo)
                .args(["--non-interactive", "--validate"])
                .stderr(Stdio::null())
                .status();
            if !refreshed.is_ok_and(|status| status.success()) {
                return;
            }
        }
    });
    let _ = OBTAINED.set(());
    Ok(())
}

/// Why sudo gives no root, if it gives none.
///
/// It is tried in silence first: `--validate` wants a password from whoever has one rule that wants it, be there another
/// that does not, and a machine image's first user has no password at all.
fn ask(sudo: &Path, terminal: bool) -> Result<Option<String>> {
    let silent = Command::new(sudo)
        .args(["--non-interactive", "true"])
        .stdin(Stdio::null())
        .output()
        .context("sudo does not start")?;
    if silent.status.success() {
        return Ok(None);
    }
    if !terminal {
        let said = String::from_utf8_lossy(&silent.stderr);
        return Ok(Some(format!(
            "without a terminal sudo gives none ({})",
            said.trim()
        )));
    }
    let asked = Command::new(sudo)
        .arg("--validate")
        .status()
        .context("sudo does not start")?;
    Ok((!asked.success()).then(|| "sudo refused it".to_owned()))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

    use std::path::PathBuf;
    use std::{env, fs};

    use super::*;

    /// A sudo that gives root in silence or after a password, as told.
    fn sudo(directory: &Path, silent: bool, validate: bool) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = directory.join(format!("sudo-{silent}-{validate}"));
        let script = format!(
            "#!/bin/sh\ncase $1 in\n--validate) {validate} ;;\n*) {silent} || echo 'a password is required' >&2; {silent} ;;\nesac\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn root_without_a_password_is_taken_before_one_is_asked_for() {
        let directory = env::temp_dir().join(format!("isthmus-sudo-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        // A machine image's first user: one rule without a password, another with one, and no password.
        let image = sudo(&directory, true, false);
        assert_eq!(ask(&image, true).unwrap(), None);
        assert_eq!(ask(&image, false).unwrap(), None);
        let typed = sudo(&directory, false, true);
        assert_eq!(ask(&typed, true).unwrap(), None);
        assert!(
            ask(&typed, false)
                .unwrap()
                .unwrap()
                .contains("a password is required")
        );
        assert!(
            ask(&sudo(&directory, false, false), true)
                .unwrap()
                .is_some()
        );
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn who_gets_no_root_is_told_what_root_types() {
        let need = Need {
            reason: "to install packages",
            by_hand: format!("apt-get install nftables\n{THEN_AGAIN}"),
        };
        assert_eq!(
            need.unmet("sudo refused it").to_string(),
            "root is needed to install packages, and sudo refused it. As root:\n    apt-get install nftables\n    \
             then, as yourself, the same command again"
        );
    }
}
