use isthmus_abi::{HealthState, MARKS, Standing, health_kind, ticks};

/// What a refusal, or an unreachable host, weighs against a backend.
pub const WEIGHT_FAILED: u64 = 5;
/// What a first time-out weighs: at one lost packet in a hundred each way, two in a row are common and five are not.
pub const WEIGHT_UNANSWERED: u64 = 3;
/// With so much against it since its last verified success, a backend is ejected: three refusals, or five time-outs.
pub const EJECT_AT: u64 = 15;

/// How long the first ejection lasts, and how long a backend stays closed to one client.
pub const FIRST_EJECTION: u64 = ticks(5_000);
/// No ejection lasts longer.
pub const LONGEST_EJECTION: u64 = ticks(300_000);
/// A trial without a word for so long has failed: the answer of a far cluster has come by then, and the kernel sends again. Nobody else
/// is sent there meanwhile.
pub const TRIAL: u64 = ticks(1_000);
/// So much longer than others the client waits whose trial was the last to fail.
const NEXT_TURN: u64 = ticks(5_000);

/// How long the ejection after `doublings` others lasts, in ticks: 5 s × 2ⁿ, 20 % more or less, never above 300 s.
/// Nodes that ejected together do not return together.
#[inline(always)]
#[must_use]
pub const fn back_off(doublings: u32, random: u32) -> u64 {
    // 5 s × 2⁷ is above the bound with any jitter.
    let doublings = if doublings > 7 { 7 } else { doublings };
    let whole = FIRST_EJECTION << doublings;
    let jittered = whole * 4 / 5 + ((whole * 2 / 5 * random as u64) >> 32);
    if jittered > LONGEST_EJECTION {
        LONGEST_EJECTION
    } else {
        jittered
    }
}

/// What a backend's state means to a draw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stance {
    /// Take it.
    Open,
    /// Take it unless it is closed to this client, and watch.
    Suspect,
    /// Leave it.
    Ejected,
    /// A standing client's connect may be its trial.
    Due,
    /// Another connect tries it.
    Trial,
}

#[inline(always)]
#[must_use]
pub const fn stance(state: HealthState, now: u64) -> Stance {
    match state.kind() {
        health_kind::HEALTHY => Stance::Open,
        health_kind::SUSPECT => Stance::Suspect,
        health_kind::EJECTED if now < state.time() => Stance::Ejected,
        health_kind::EJECTED => Stance::Due,
        _ => Stance::Trial,
    }
}

/// Clients that stand now: seen established in this epoch or in the last. `words` are a row's, by the epoch's lowest bit.
#[inline(always)]
#[must_use]
pub const fn standing(words: [u64; 2], epoch: u64) -> u64 {
    let last = epoch.wrapping_sub(1);
    Standing(words[(epoch & 1) as usize]).of(epoch) | Standing(words[(last & 1) as usize]).of(last)
}

/// What makes a draw ask health first; 0 if nothing is held against the backend, and the client of `mark` stands at the service
/// by its word of this `epoch`. One number and no branch: each would be one more way for the verifier to walk all that follows.
#[inline(always)]
#[must_use]
pub const fn doubts(state: HealthState, standing: Standing, epoch: u64, mark: u32) -> u64 {
    let bit = 1 << mark;
    let stands = Standing::new(epoch, bit).0;
    state.0 | (standing.0 ^ stands) & (!MARKS | bit)
}

/// Whether this client's failures count, and whether it may try an ejected backend: it stands, or nobody does and there
/// is no one better to ask.
#[inline(always)]
#[must_use]
pub const fn has_vote(standing: u64, bit: u64) -> bool {
    standing == 0 || standing & bit != 0
}

/// `run` with another failure: the score in the top byte, capped, and the client's bit. What has no score is the time of an ejection, and
/// stays: the failure was on its way then.
#[inline(always)]
#[must_use]
pub const fn add_failure(run: u64, bit: u64, weight: u64) -> u64 {
    if run != 0 && run <= MARKS {
        return run;
    }
    let score = (run >> MARKS.count_ones()) + weight;
    let score = if score > 0xff { 0xff } else { score };
    score << MARKS.count_ones() | (run | bit) & MARKS
}

/// Whether one more refusal leads to a judgement of the run.
#[inline(always)]
#[must_use]
pub const fn is_grave(run: u64) -> bool {
    (run >> MARKS.count_ones()) + WEIGHT_FAILED >= EJECT_AT
}

/// Whether this client's connect may be the trial of a backend whose time is over, and of which `state` says who tried it last.
/// Others go first, so that no client's own trouble keeps a backend out.
#[inline(always)]
#[must_use]
pub const fn may_try(state: HealthState, standing: u64, mark: u32, now: u64) -> bool {
    let bit = 1 << (mark & 63);
    has_vote(standing, bit)
        && (state.mark() != mark || standing & !bit == 0 || now >= state.time() + NEXT_TURN)
}

/// What a run of failures leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Too little is held against the backend.
    Keep,
    /// Enough, but by one client's word while others could speak: closed to that client.
    Close,
    /// Enough, by the word of two clients, or of the only one that stands.
    Eject,
}

#[inline(always)]
#[must_use]
pub const fn judge_run(run: u64, standing: u64) -> Judgement {
    if run >> MARKS.count_ones() < EJECT_AT {
        return Judgement::Keep;
    }
    if several(run & MARKS) || (standing != 0 && !several(standing)) {
        Judgement::Eject
    } else {
        Judgement::Close
    }
}

/// More than one bit.
const fn several(marks: u64) -> bool {
    marks & marks.wrapping_sub(1) != 0
}

/// How a watched connect stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It was established, whatever came after.
    Established,
    /// No answer so far, or none that was told.
    Waiting,
    /// The socket is another's, or was given up: nobody knows.
    Gone,
}

/// `TCP_CLOSE` (net/tcp_states.h).
pub const CLOSE: u8 = 7;

/// `state` is the kernel's (net/tcp_states.h); `heard` says whether the peer ever answered with data or an acknowledgement, and
/// `busy` whether the socket's owner is in the middle of a call, or an error waits for it. A connect is noted before its socket has left
/// `CLOSE`, in the call; and one that fails is in `CLOSE` again, with its error, before the kernel reports that.
#[inline(always)]
#[must_use]
pub const fn fate(state: u8, heard: bool, busy: bool) -> Fate {
    const ESTABLISHED: u8 = 1;
    const SYN_SENT: u8 = 2;
    const SYN_RECV: u8 = 3;
    match state {
        SYN_SENT | SYN_RECV => Fate::Waiting,
        CLOSE if heard => Fate::Established,
        CLOSE if busy => Fate::Waiting,
        // FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
        ESTABLISHED | 4..=6 | 8 | 9 | 11 => Fate::Established,
        _ => Fate::Gone,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_abi::{CLIENT_MARKS, client_mark};
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use std::vec;
    use std::vec::Vec;

    const A: u64 = 1;
    const B: u64 = 1 << 55;

    fn run(failures: &[(u64, u64)]) -> u64 {
        failures
            .iter()
            .fold(0, |run, (bit, weight)| add_failure(run, *bit, *weight))
    }

    #[test]
    fn an_ejection_s_time_stays_whatever_fails_then() {
        for time in [1, 1 << 47, MARKS] {
            for weight in [WEIGHT_FAILED, WEIGHT_UNANSWERED] {
                let run = add_failure(time, B, weight);
                assert_eq!(run, time);
                assert!(!is_grave(run));
                assert_eq!(judge_run(run, A | B), Judgement::Keep);
            }
        }
    }

    #[test]
    fn three_refusals_or_five_time_outs_eject() {
        let refused = |clients: &[u64]| {
            run(&clients
                .iter()
                .map(|bit| (*bit, WEIGHT_FAILED))
                .collect::<Vec<_>>())
        };
        let unanswered = |n: usize| run(&vec![(A, WEIGHT_UNANSWERED); n]);
        for (name, run, standing, wanted) in [
            ("two refusals", refused(&[A, B]), A | B, Judgement::Keep),
            (
                "three of the only voter",
                refused(&[A, A, A]),
                A,
                Judgement::Eject,
            ),
            (
                "three of one among two voters",
                refused(&[A, A, A]),
                A | B,
                Judgement::Close,
            ),
            (
                "three of two clients",
                refused(&[A, A, B]),
                A | B,
                Judgement::Eject,
            ),
            (
                "three, nobody stands",
                refused(&[A, A, A]),
                0,
                Judgement::Close,
            ),
            (
                "three of two, nobody stands",
                refused(&[A, B, B]),
                0,
                Judgement::Eject,
            ),
            ("four time-outs", unanswered(4), A, Judgement::Keep),
            ("five time-outs", unanswered(5), A, Judgement::Eject),
        ] {
            assert_eq!(judge_run(run, standing), wanted, "{name}");
        }
    }

    #[test]
    fn a_run_saturates() {
        let long = run(&vec![(B, WEIGHT_FAILED); 1000]);
        assert_eq!(long >> CLIENT_MARKS, 0xff);
        assert_eq!(long & MARKS, B);
    }

    #[test]
    fn a_client_stands_for_two_epochs() {
        let seen = [Standing::new(8, A).0, Standing::new(7, B).0];
        assert_eq!(standing(seen, 8), A | B);
        assert_eq!(standing(seen, 9), A);
        assert_eq!(standing(seen, 10), 0);
        // The byte of the epoch turns over.
        assert_eq!(
            standing([Standing::new(256, A).0, Standing::new(255, B).0], 256),
            A | B
        );
        assert_eq!(standing([0, 0], 3), 0);
    }

    #[test]
    fn nothing_is_doubted_of_a_healthy_backend_by_who_stands_in_this_epoch() {
        let (healthy, mark) = (HealthState::HEALTHY, 55);
        for (name, state, standing, epoch, plain) in [
            ("stands", healthy, Standing::new(8, A | B), 8, true),
            ("alone", healthy, Standing::new(8, B), 8, true),
            ("another stands", healthy, Standing::new(8, A), 8, false),
            (
                "stood in an earlier epoch",
                healthy,
                Standing::new(6, B),
                8,
                false,
            ),
            ("nobody", healthy, Standing::default(), 8, false),
            ("in epoch 0 too", healthy, Standing::default(), 0, false),
            (
                "suspect",
                HealthState::suspect(1),
                Standing::new(8, B),
                8,
                false,
            ),
        ] {
            assert_eq!(doubts(state, standing, epoch, mark) == 0, plain, "{name}");
        }
    }

    #[test]
    fn only_who_stands_votes_unless_nobody_does() {
        assert!(has_vote(A, A));
        assert!(!has_vote(B, A));
        assert!(has_vote(0, A));
    }

    #[test]
    fn states_are_read_as_written() {
        let until = 0x0000_1234_5678_9abc;
        let ejected = HealthState::ejected(until, 9);
        assert_eq!(
            (ejected.kind(), ejected.time(), ejected.doublings()),
            (2, until, 9)
        );
        assert_eq!(ejected.mark(), HealthState::NOBODY);
        assert_eq!(HealthState::ejected_by(until, 9, 55).mark(), 55);
        let trial = HealthState::trial(until, 99, 55);
        assert_eq!(
            (trial.kind(), trial.time(), trial.doublings(), trial.mark()),
            (3, until, HealthState::DOUBLINGS_MAX, 55)
        );
        assert_eq!(stance(HealthState::HEALTHY, 1), Stance::Open);
        assert_eq!(stance(HealthState::suspect(5), 1), Stance::Suspect);
        assert_eq!(stance(ejected, until - 1), Stance::Ejected);
        assert_eq!(stance(ejected, until), Stance::Due);
        assert_eq!(stance(trial, until + 1), Stance::Trial);
    }

    #[test]
    fn a_suspect_backend_waits_for_the_connect_that_was_let_through() {
        let (since, now) = (70_000, 80_000);
        let suspect = HealthState::suspect(since).accused(false);
        assert!(!suspect.is_gated(now));
        let probed = suspect.probed(now);
        assert_eq!((probed.kind(), probed.time()), (1, since));
        assert!(probed.is_gated(now) && probed.is_gated(now + ticks(95)));
        assert!(!probed.is_gated(now + ticks(110)));
        // The next one is let through, and the one after it waits again.
        let again = probed.probed(now + ticks(110));
        assert!(again.is_gated(now + ticks(120)));
        assert_eq!(again.time(), since);
        assert_eq!(stance(probed, now), Stance::Suspect);
        // Nothing is held against it: it is suspect for the sake of somebody to whom it is closed.
        assert!(!HealthState::suspect(since).probed(now).is_gated(now));
        assert!(!probed.is_grave());
        let grave = HealthState::suspect(since).accused(true).probed(now);
        assert!(grave.is_gated(now) && grave.is_grave());
    }

    #[test]
    fn one_more_refusal_is_one_too_many() {
        for (name, run, grave) in [
            ("nothing", 0, false),
            ("a refusal", run(&[(A, WEIGHT_FAILED)]), false),
            ("two", run(&[(A, WEIGHT_FAILED); 2]), true),
            ("three time-outs", run(&[(A, WEIGHT_UNANSWERED); 3]), false),
            ("four", run(&[(A, WEIGHT_UNANSWERED); 4]), true),
        ] {
            assert_eq!(is_grave(run), grave, "{name}");
        }
    }

    #[test]
    fn whose_trial_failed_waits_for_others() {
        let (a, until) = (A.trailing_zeros(), 80_000);
        let (first, own) = (
            HealthState::ejected(until, 0),
            HealthState::ejected_by(until, 1, a),
        );
        for (name, state, standing, now, wanted) in [
            ("nobody tried yet", first, A | B, until, true),
            ("it has no vote", first, B, until, false),
            ("it failed, and others stand", own, A | B, until, false),
            ("others had their time", own, A | B, until + NEXT_TURN, true),
            ("it is the only one", own, A, until, true),
            ("nobody stands", own, 0, until, true),
        ] {
            assert_eq!(may_try(state, standing, a, now), wanted, "{name}");
        }
    }

    #[test]
    fn fates_follow_the_sockets_state() {
        for (state, heard, busy, wanted) in [
            (1, false, false, Fate::Established),
            (2, false, false, Fate::Waiting),
            (3, false, false, Fate::Waiting),
            (4, true, false, Fate::Established),
            (6, true, false, Fate::Established),
            (7, false, false, Fate::Gone),
            (7, true, false, Fate::Established),
            // On its way, or refused and not reported yet.
            (7, false, true, Fate::Waiting),
            // Reset after it was established.
            (7, true, true, Fate::Established),
            (8, true, false, Fate::Established),
            (10, false, false, Fate::Gone),
            (12, true, false, Fate::Gone),
        ] {
            assert_eq!(fate(state, heard, busy), wanted, "state {state}");
        }
    }

    proptest! {
        #[test]
        fn back_off_doubles_within_a_fifth(doublings in 0_u32..64, random: u32) {
            let whole = FIRST_EJECTION << doublings.min(20);
            let wait = back_off(doublings, random);
            prop_assert!(wait <= LONGEST_EJECTION);
            prop_assert!(wait >= (whole * 4 / 5).min(LONGEST_EJECTION));
            prop_assert!(wait <= whole * 6 / 5);
        }

        #[test]
        fn marks_are_in_range(cookie: u64) {
            prop_assert!(client_mark(cookie) < CLIENT_MARKS);
        }
    }

    #[test]
    fn neighbours_have_marks_of_their_own() {
        let marks: BTreeSet<u32> = (1..=24).map(client_mark).collect();
        assert!(marks.len() >= 18, "{marks:?}");
    }
}
