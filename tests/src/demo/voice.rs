//! How the demo speaks: lines for people, or one JSON document.

use std::time::Duration;

use anyhow::Result;
use isthmus_tests::client::{self, Report};
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
        self.moment_with(since_the_step, what, effect, json!({}));
    }
    /// The same, with the effect's numbers for programs.
    pub(crate) fn moment_with(
        &mut self,
        since_the_step: Duration,
        what: &str,
        effect: &str,
        numbers: Value,
    ) {
        let seconds = since_the_step.as_secs_f64();
        let mut event = json!({"seconds": seconds, "what": what, "effect": effect});
        if let (Value::Object(event), Value::Object(numbers)) = (&mut event, numbers) {
            event.extend(numbers);
        }
        let line = format!("   +{seconds:.3} s  {what:<38} {effect}");
        self.tell(event, line.trim_end());
    }
    /// Traffic of one stretch.
    pub(crate) fn traffic(&mut self, seconds: f64, report: &Report, remark: &str) {
        let (east, west) = (report.from_cluster("east"), report.from_cluster("west"));
        let (requests, failed) = (report.requests, report.failed());
        let event = json!({
            "seconds": seconds, "requests": requests, "east": east, "west": west, "failed": failed,
            "failures": kinds(report), "remark": remark
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
    pub(crate) fn commands(&mut self, lines: &[String]) {
        self.tell(
            json!({"commands": lines}),
            &format!("\nThe lab is still up. Try:\n  {}", lines.join("\n  ")),
        );
    }
    pub(crate) fn end(mut self, all: &Report, why: &str, took: Duration, kept: bool) -> Result<()> {
        let seconds = took.as_secs_f64();
        let (requests, failed, failures) = (all.requests, all.failed(), kinds(all));
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
            json!({
                "requests": requests, "failed": failed, "failures": failures, "seconds": seconds, "kept": kept
            }),
            &line,
        );
        if self.json {
            let document = json!({
                "apiVersion": "isthmus.dev/v1", "kind": "Demo", "title": self.title, "requests": requests,
                "failed": failed, "failures": failures, "seconds": seconds, "events": self.events,
            });
            say(&serde_json::to_string_pretty(&document)?)?;
        }
        Ok(())
    }
}

/// How many requests failed by what, all kinds always.
pub(crate) fn kinds(report: &Report) -> Value {
    let kinds = [
        ("refused", client::REFUSED),
        ("timedOut", client::TIMED_OUT),
        ("givenUp", client::GIVEN_UP),
        ("noAnswer", client::NO_ANSWER),
        ("brokenOff", client::BROKEN_OFF),
    ];
    let counts = kinds.map(|(key, how)| (key, report.failed_by(how)));
    let known: u64 = counts.iter().map(|(_, count)| count).sum();
    let other = ("other", report.failed() - known);
    let all = counts.into_iter().chain([other]);
    all.map(|(key, count)| (key.to_owned(), Value::from(count)))
        .collect::<serde_json::Map<_, _>>()
        .into()
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
    use isthmus_tests::client::{BROKEN_OFF, REFUSED, Report};
    use serde_json::json;

    #[test]
    fn failures_are_told_by_kind() {
        let failures = [
            (REFUSED, 3),
            (BROKEN_OFF, 1),
            ("EACCES: Permission denied", 2),
        ];
        let report = Report {
            failures: failures.map(|(how, count)| (how.to_owned(), count)).into(),
            ..Report::default()
        };
        let wanted = json!({
            "refused": 3, "timedOut": 0, "givenUp": 0, "noAnswer": 0, "brokenOff": 1, "other": 2
        });
        assert_eq!(super::kinds(&report), wanted);
    }

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
