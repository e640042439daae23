//! What a kept demo can be explored with: lines to paste.

use std::env;

use anyhow::Result;
use isthmus_tests::{Frontend, Lab};

/// Commands for the reader's shell. Each needs root: they come with `sudo` for a reader who has it that way.
pub(super) fn lines(lab: &Lab, frontend: &Frontend) -> Result<Vec<String>> {
    let lines = by_root(lab, frontend)?;
    Ok(for_reader(lines, env::var("SUDO_UID").ok().as_deref()))
}

fn by_root(lab: &Lab, frontend: &Frontend) -> Result<Vec<String>> {
    let binaries = lab.programs().dir().canonicalize()?;
    let bin = binaries.display();
    let target = frontend.target()?;
    let manifest = lab.cluster("east")?.manifests().path(super::MANIFEST);
    let node = lab.node("east-1")?;
    let agentctl = format!("{bin}/agentctl --socket {}", node.agent_socket().display());
    let in_client = format!("{bin}/isthmus-lab exec demo east/client --");
    Ok(vec![
        format!("{bin}/isthmus-lab status demo"),
        format!("{in_client} {bin}/isthmus-lab client --target {target} --rate 1000"),
        format!(
            "{in_client} bash -c 'while sleep 0.2; do cat < /dev/tcp/{}/{}; done'",
            target.ip(),
            target.port()
        ),
        format!("${{EDITOR:-vi}} {}", manifest.display()),
        format!("{agentctl} service list"),
        format!("{agentctl} bpf lb list"),
        format!(
            "bpftool map dump pinned {}",
            node.map_pin("frontends4")?.display()
        ),
        format!("kill -9 {}", node.agent_pid()?),
        format!("{bin}/isthmus-lab down demo"),
    ])
}

/// sudo tells who called; nobody, or root, did without it.
fn for_reader(mut lines: Vec<String>, sudo_uid: Option<&str>) -> Vec<String> {
    if sudo_uid.is_some_and(|uid| uid != "0") {
        for line in &mut lines {
            line.insert_str(0, "sudo ");
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    #[test]
    fn who_came_by_sudo_goes_on_by_sudo() {
        for (sudo_uid, wanted) in [
            (None, "kill -9 7"),
            (Some("0"), "kill -9 7"),
            (Some("1000"), "sudo kill -9 7"),
        ] {
            let lines = super::for_reader(vec!["kill -9 7".to_owned()], sudo_uid);
            assert_eq!(lines, [wanted], "{sudo_uid:?}");
        }
    }
}
