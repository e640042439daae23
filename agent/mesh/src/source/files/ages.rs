//! Since when a problem is there. Its words change, and so do the numbers of lines above it; what it is about does not.

use std::collections::HashMap;
use std::time::Instant;

use isthmus_core::model::{Problem, ProblemKind};

/// What makes two problems one: the kind, the file, the object and the field.
type About<'a> = (ProblemKind, &'a str, &'a str, &'a str);

fn about(problem: &Problem) -> About<'_> {
    let (file, line) = problem
        .place
        .rsplit_once(':')
        .unwrap_or((&problem.place, ""));
    let numbered = !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit());
    let file = if numbered { file } else { &problem.place };
    (problem.kind, file, &problem.object, &problem.field)
}

/// Each problem with the moment since which one like it is `known`, or else with `now`.
pub(super) fn since(
    known: &[(Problem, Instant)],
    found: Vec<Problem>,
    now: Instant,
) -> Vec<(Problem, Instant)> {
    let mut since = HashMap::new();
    for (problem, at) in known {
        let first = since.entry(about(problem)).or_insert(*at);
        *first = (*first).min(*at);
    }
    let aged = found.into_iter().map(|problem| {
        let at = since.get(&about(&problem)).copied().unwrap_or(now);
        (problem, at)
    });
    aged.collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn problem(place: &str, field: &str, message: &str) -> Problem {
        Problem {
            kind: ProblemKind::Broken,
            place: place.to_owned(),
            object: "Service a".to_owned(),
            field: field.to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_problem_grows_old_while_its_words_and_lines_change() {
        let (start, later) = (Instant::now(), Instant::now() + Duration::from_secs(9));
        let first = since(
            &[],
            vec![problem("a.yaml:3", "spec.type", "x (0s old)")],
            start,
        );
        let second = vec![
            problem("a.yaml:5", "spec.type", "x (9s old)"),
            problem("a.yaml:5", "spec.ports", "x"),
            problem("b.yaml:3", "spec.type", "x"),
            problem("c:x.yaml", "", "x"),
        ];
        let second = since(&first, second, later);
        let ages: Vec<_> = second.iter().map(|(_, at)| *at == start).collect();
        assert_eq!(ages, [true, false, false, false]);
        // Gone and come again is new.
        let third = since(
            &since(&second, Vec::new(), later),
            vec![first[0].0.clone()],
            later,
        );
        assert_eq!(third[0].1, later);
    }
}
