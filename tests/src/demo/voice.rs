//! How the demo speaks: lines for people, or one JSON document.

use std::time::Duration;

use anyhow::Result;
use isthmus_tests::client::Report;
use isthmus_tests::{Frontend, Lab};
use serde_json::{Value, json};

use crate::commands::say;

pub(crate) struct Voice {
    json: bool,
    title: String,
    events: Vec<Value>,
}

impl Voice {
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            title: String::new(),
            events: Vec::new(),
        }
    }
    fn tell(&mut self, event: Value, line: &str) {
        self.events.push(event);
        if !self.json {
            // A reader that went away does not stop the story, or its clean-up.
            let _ = say(line);
        }
    }
    pub(crate) fn headline(&mut self, line: &str) {
        self.title = line.to_owned();
        self.tell(json!({"headline": line}), line);
    }
    pub(crate) fn step(&mut self, number: u8, title: &str) {
        self.tell(
            json!({"step": number, "title": title}),
            &format!("\n{number}  {title}"),
        );
    }
    pub(crate) fn timed(&mut self, what: &str, text: &str, took: Duration) {
        let seconds = took.as_secs_f64();
        self.tell(
            json!({"what": what, "text": text, "seconds": seconds}),
            &format!("{what:<8} {text:<72} {seconds:.1} s"),
        );
    }
    pub(crate) fn note(&mut self, text: &str) {
        self.tell(json!({"note": text}), &format!("   {text}"));
    }
    /// Something that was done or seen, and how long it took to show.
    pub(crate) fn effect(&mut self, cause: &str, effect: &str, nanoseconds: Option<u64>) {
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let ms = nanoseconds.map(|n| n as f64 / 1e6);
        let time = match ms {
            None => "at once".to_owned(),
            Some(ms) if ms >= 1000.0 => format!("after {:.2} s", ms / 1000.0),
            Some(ms) => format!("after {ms:.1} ms"),
        };
        let event = json!({"cause": cause, "effect": effect, "milliseconds": ms});
        self.tell(event, &format!("   + {cause:<46} {effect} {time}"));
    }
    /// Something at its moment of a step.
    pub(crate) fn moment(&mut self, since_the_step: Duration, what: &str, effect: &str) {
        let seconds = since_the_step.as_secs_f64();
        let event = json!({"seconds": seconds, "what": what, "effect": effect});
        let line = format!("   +{seconds:.3} s  {what:<38} {effect}");
        self.tell(event, line.trim_end());
    }
    /// Traffic of one stretch.
    pub(crate) fn traffic(&mut self, seconds: f64, report: &Report, remark: &str) {
        let (east, west) = (report.from_cluster("east"), report.from_cluster("west"));
        let (requests, failed) = (report.requests, report.failed());
        let event = json!({
            "seconds": seconds, "requests": requests, "east": east, "west": west, "failed": failed, "remark": remark
        });
        let line = format!(
            "   {seconds:.1} s {:>9} requests   east {:>7}   west {:>7}   failed {failed:<3} {remark}",
            thousands(requests),
            thousands(east),
            thousands(west)
        );
        self.tell(event, line.trim_end());
    }
    /// A command's real output.
    pub(crate) fn output(&mut self, command: &str, exit: i32, text: &str) {
        let event = json!({"command": command, "exit": exit, "output": text});
        self.tell(
            event,
            &format!("\n$ {command}      (exit {exit})\n{}", text.trim_end()),
        );
    }
    pub(crate) fn commands(&mut self, lab: &Lab, frontend: &Frontend) -> Result<()> {
        let binaries = lab.programs().dir().canonicalize()?;
        let bin = binaries.display();
        let target = frontend.target()?;
        let east = lab.cluster("east")?;
        let socket = lab.node("east-1")?.agent_socket();
        let pins = lab.node("east-1")?.plan().pins();
        let lines = [
            format!("{bin}/isthmus-lab status demo"),
            format!(
                "{bin}/isthmus-lab exec demo east/client -- {bin}/isthmus-lab client --target {target} --rate 1000"
            ),
            format!(
                "{bin}/isthmus-lab exec demo east/client -- bash -c 'while sleep 0.2; do cat < /dev/tcp/{}/{}; done'",
                target.ip(),
                target.port()
            ),
            format!(
                "$EDITOR {}",
                east.manifests().path("service-backend.yaml").display()
            ),
            format!("{bin}/agentctl --socket {} service list", socket.display()),
            format!("{bin}/agentctl --socket {} bpf lb list", socket.display()),
            format!(
                "find {} -type p -o -type f | head; bpftool map show",
                pins.display()
            ),
            format!("kill -9 {}", lab.node("east-1")?.agent_pid()?),
            format!("{bin}/isthmus-lab down demo"),
        ];
        self.tell(
            json!({"commands": lines}),
            &format!("\nThe lab is still up. Try:\n  {}", lines.join("\n  ")),
        );
        Ok(())
    }
    pub(crate) fn end(
        mut self,
        requests: u64,
        failed: u64,
        why: &str,
        took: Duration,
        kept: bool,
    ) -> Result<()> {
        let seconds = took.as_secs_f64();
        let cleaned = if kept {
            "The lab is kept."
        } else {
            "Cleaned up."
        };
        let line = format!(
            "\n{} requests, {failed} failed{why}. {cleaned} {seconds:.1} s",
            thousands(requests)
        );
        self.tell(
            json!({"requests": requests, "failed": failed, "seconds": seconds, "kept": kept}),
            &line,
        );
        if self.json {
            let document = json!({
                "apiVersion": "isthmus.dev/v1", "kind": "Demo", "title": self.title, "requests": requests,
                "failed": failed, "seconds": seconds, "events": self.events,
            });
            say(&serde_json::to_string_pretty(&document)?)?;
        }
        Ok(())
    }
}

/// `8,000`
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(super::thousands(number), text);
        }
    }
}
