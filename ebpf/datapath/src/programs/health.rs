//! Passive health: who may be drawn, whose word counts, and what becomes of a backend that fails.
//!
//! A success costs nothing when it happens: the next connect of the same client looks at an earlier one's socket, and
//! only while the client does not stand, or the backend is suspect. A failure comes from [`super::failure`].

use core::ffi::c_void;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use isthmus_abi::{
    BackendHealthRow, Counter, EPOCH_SHIFT, EventKind, FailureCause, HealthState, MARKS, Ring,
    Standing, TICK_SHIFT, TIERS_MAX, TierHead, WALK_MAX, service_flags, watch_slot,
};
use isthmus_datapath::{
    Drawn, FIRST_EJECTION, Fate, Judgement, Stance, TRIAL, WEIGHT_FAILED, WEIGHT_UNANSWERED,
    add_failure, back_off, fate, has_vote, judge, judge_run, nth, stance, standing,
};

use super::socket;
use crate::atomic;
use crate::event::{About, tell, tell_seldom};
use crate::kernel::Sock;
use crate::maps::{
    BACKEND_FAILURES, BACKEND_HEALTH, BACKENDS, SERVICE_HEALTH, SERVICE_LIMITS, SETTINGS, SLOTS,
    WATCHES, count,
};

/// Tries of an exchange that others may win.
const TRIES: usize = 4;
/// In [`WatchRow::socket`]: being written. No socket lies at an odd address.
const CLAIMED: u64 = 1;
/// No backend.
const NONE: u32 = u32::MAX;

/// A connect, as health sees it.
#[repr(C)]
pub struct Request {
    pub service: u32,
    pub mark: u32,
    /// The backend that was drawn.
    pub drawn: u32,
    /// 1 if the connect is a trial.
    trial: u16,
    /// 1 if a later connect asks what became of it.
    watched: u16,
    pub ring: Ring,
    /// In ticks.
    now: u64,
    epoch: u64,
    /// Of the backend that was chosen, if another than the drawn one had to be.
    pub tier: u32,
    reserved: u32,
}

impl Request {
    #[inline(always)]
    pub fn new(service: u32, mark: u32, drawn: u32, ring: Ring) -> Self {
        let (now, epoch) = clock();
        Self {
            service,
            mark,
            drawn,
            trial: 0,
            watched: 0,
            ring,
            now,
            epoch,
            tier: 0,
            reserved: 0,
        }
    }
    #[inline(always)]
    pub fn watched(&self) -> u32 {
        self.watched.into()
    }
    #[inline(always)]
    fn bit(&self) -> u64 {
        1 << (self.mark & 63)
    }
}

/// Now, in ticks and in epochs.
#[inline(always)]
fn clock() -> (u64, u64) {
    // SAFETY: a helper without arguments.
    let nanoseconds = unsafe { bpf_ktime_get_ns() };
    (nanoseconds >> TICK_SHIFT, nanoseconds >> EPOCH_SHIFT)
}

#[inline(always)]
fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
fn state_of(health: *const BackendHealthRow) -> HealthState {
    // SAFETY: an aligned word of a map's row.
    HealthState(unsafe { atomic::load(addr_of!((*health).state)) })
}

/// Takes the state from `seen` to `new`, unless another was faster.
#[inline(always)]
fn change(health: *mut BackendHealthRow, seen: HealthState, new: HealthState) -> bool {
    // SAFETY: an aligned word of a map's row that is changed by exchange only.
    unsafe { atomic::exchange_if(addr_of_mut!((*health).state), seen.0, new.0) }
}

/// The clients that stand at the service.
#[inline(always)]
fn service_standing(service: u32, epoch: u64) -> u64 {
    let Some(row) = SERVICE_HEALTH.get_ptr(service) else {
        return 0;
    };
    // SAFETY: aligned words of a map's row.
    let words = unsafe {
        [
            atomic::load(addr_of!((*row).standing[0])),
            atomic::load(addr_of!((*row).standing[1])),
        ]
    };
    standing(words, epoch)
}

/// Chooses when the drawn backend is not simply to be taken: the client does not stand there in this epoch, or the backend
/// is not healthy. Returns a backend's id.
#[inline(always)]
pub fn choose(ctx: &SockAddrContext, request: &mut Request) -> u32 {
    review(request);
    let drawn = request.drawn;
    let mut chosen = drawn;
    if !may_take(request) {
        chosen = walk(request);
        if chosen == NONE {
            fall_open(request.service);
            chosen = drawn;
        }
    }
    watch(ctx, request, chosen);
    chosen
}

/// Every backend of every tier is out: belief never refuses, so the first draw stands.
#[inline(always)]
fn fall_open(service: u32) {
    count(Counter::AllEjected);
    if let Some(row) = SERVICE_HEALTH.get_ptr_mut(service) {
        // SAFETY: an aligned word of a map's row, changed by addition only.
        unsafe { atomic::add(addr_of_mut!((*row).all_ejected), 1) };
    }
    tell_seldom(EventKind::AllEjected as u32, service, 0);
}

/// Whether the drawn backend may be taken, perhaps as its trial.
#[inline(never)]
fn may_take(request: &mut Request) -> bool {
    let Some(health) = BACKEND_HEALTH.get_ptr_mut(request.drawn) else {
        return true;
    };
    let state = state_of(health);
    if let Some(limits) = SERVICE_LIMITS.get(request.service)
        && limits.flags & service_flags::NO_PASSIVE_HEALTH != 0
    {
        return true;
    }
    match stance(state, request.now) {
        Stance::Open => true,
        Stance::Suspect => !is_closed(request.drawn, request.bit(), request.now),
        Stance::Ejected => false,
        Stance::Due => begin_trial(request, health, state),
        Stance::Trial => join_trial(request, health, state),
    }
}

#[inline(always)]
fn is_closed(backend: u32, bit: u64, now: u64) -> bool {
    let Some(failures) = BACKEND_FAILURES.get_ptr(backend) else {
        return false;
    };
    // SAFETY: aligned words of a map's row.
    unsafe {
        atomic::load(addr_of!((*failures).closed)) & bit != 0
            && now < atomic::load(addr_of!((*failures).closed_until))
    }
}

/// Makes this connect the trial of a backend whose time is over, if the client stands and nobody is faster.
#[inline(always)]
fn begin_trial(request: &mut Request, health: *mut BackendHealthRow, seen: HealthState) -> bool {
    let votes = has_vote(
        service_standing(request.service, request.epoch),
        request.bit(),
    );
    if !votes || is_closed(request.drawn, request.bit(), request.now) {
        return false;
    }
    let trial = HealthState::trial(request.now + TRIAL, seen.doublings(), request.mark);
    if !change(health, seen, trial) {
        return false;
    }
    request.trial = 1;
    tell(
        EventKind::TrialBegan,
        about(request),
        FailureCause::None,
        trial,
    );
    true
}

#[inline(always)]
fn about(request: &Request) -> About {
    let generation = BACKENDS
        .get(request.drawn)
        .map_or(0, |backend| backend.generation);
    About {
        service: request.service,
        backend: request.drawn,
        generation,
        mark: request.mark,
    }
}

/// Looks at the connect that tries the drawn backend.
#[inline(always)]
fn join_trial(request: &mut Request, health: *mut BackendHealthRow, seen: HealthState) -> bool {
    let over = request.now >= seen.time();
    let fate = match WATCHES.get_ptr(watch_slot(seen.mark() & 63, request.service)) {
        // SAFETY: words of a map's row; a torn read is found out by the cookie.
        Some(watch) => unsafe {
            let ours = read_volatile(addr_of!((*watch).backend)) == request.drawn
                && read_volatile(addr_of!((*watch).service)) == request.service;
            if ours {
                look(
                    request.drawn,
                    atomic::load(addr_of!((*watch).socket)),
                    read_volatile(addr_of!((*watch).cookie)),
                    read_volatile(addr_of!((*watch).place)),
                )
            } else {
                Fate::Waiting
            }
        },
        None => Fate::Gone,
    };
    match fate {
        Fate::Established => {
            readmit(request.drawn, health, seen, request.service);
            true
        }
        // It may be on its way between draw and watch.
        Fate::Waiting if !over => false,
        Fate::Waiting => {
            fail_trial(
                request.drawn,
                health,
                seen,
                request.service,
                FailureCause::Unanswered,
                request.now,
            );
            false
        }
        Fate::Gone => begin_trial(request, health, seen),
    }
}

/// What became of a watched socket that was sent to `backend`. One that was connected elsewhere since tells nothing.
#[inline(never)]
fn look(backend: u32, socket: u64, cookie: u64, place: u32) -> Fate {
    if socket == 0 {
        return Fate::Gone;
    }
    if socket == CLAIMED {
        return Fate::Waiting;
    }
    // Closed: its memory may hold it still, or the next socket by now.
    if socket::ended_well(place, cookie) {
        return Fate::Established;
    }
    let sock = Sock(socket);
    if sock.cookie() != cookie {
        return Fate::Gone;
    }
    let seen = fate(sock.state(), sock.heard());
    let Some(row) = BACKENDS.get(backend) else {
        return Fate::Gone;
    };
    let there = sock.peer_is(&row.address, row.port);
    if !there || sock.cookie() != cookie {
        return Fate::Gone;
    }
    seen
}

#[inline(always)]
fn readmit(backend: u32, health: *mut BackendHealthRow, seen: HealthState, service: u32) {
    if !change(health, seen, HealthState::HEALTHY) {
        return;
    }
    if let Some(failures) = BACKEND_FAILURES.get_ptr_mut(backend) {
        // SAFETY: aligned words of a map's row.
        unsafe {
            atomic::store(addr_of_mut!((*failures).run), 0);
            atomic::store(addr_of_mut!((*failures).doubted), 0);
            atomic::store(addr_of_mut!((*failures).closed), 0);
        }
    }
    let generation = BACKENDS.get(backend).map_or(0, |row| row.generation);
    tell(
        EventKind::Returned,
        About {
            service,
            backend,
            generation,
            mark: seen.mark(),
        },
        FailureCause::None,
        seen,
    );
}

#[inline(always)]
fn fail_trial(
    backend: u32,
    health: *mut BackendHealthRow,
    seen: HealthState,
    service: u32,
    cause: FailureCause,
    now: u64,
) {
    let doublings = seen.doublings() + 1;
    let ejected = HealthState::ejected(now + back_off(doublings, random()), doublings);
    if !change(health, seen, ejected) {
        return;
    }
    let generation = BACKENDS.get(backend).map_or(0, |row| row.generation);
    tell(
        EventKind::TrialFailed,
        About {
            service,
            backend,
            generation,
            mark: seen.mark(),
        },
        cause,
        ejected,
    );
}

/// Looks at the client's earlier connect, if one is watched, and draws the conclusions.
#[inline(never)]
fn review(request: &Request) -> u32 {
    let Some(row) = WATCHES.get_ptr_mut(watch_slot(request.mark & 63, request.service)) else {
        return 0;
    };
    // SAFETY: words of a map's row; a torn read is found out by the cookie and by the exchange at the end.
    let (socket, cookie, since, service, backend, generation, place) = unsafe {
        (
            atomic::load(addr_of!((*row).socket)),
            read_volatile(addr_of!((*row).cookie)),
            read_volatile(addr_of!((*row).since)),
            read_volatile(addr_of!((*row).service)),
            read_volatile(addr_of!((*row).backend)),
            read_volatile(addr_of!((*row).generation)),
            read_volatile(addr_of!((*row).place)),
        )
    };
    if socket == 0 || socket == CLAIMED {
        return 0;
    }
    let fate = look(backend, socket, cookie, place);
    if fate == Fate::Waiting && request.now.wrapping_sub(since) < TRIAL {
        return 0;
    }
    // SAFETY: an aligned word; whoever takes the watch out draws the conclusions.
    if !unsafe { atomic::exchange_if(addr_of_mut!((*row).socket), socket, 0) } {
        return 0;
    }
    let Some(known) = BACKENDS.get(backend) else {
        return 0;
    };
    if known.service != service || known.generation != generation {
        return 0;
    }
    let Some(health) = BACKEND_HEALTH.get_ptr_mut(backend) else {
        return 0;
    };
    let state = state_of(health);
    // The watch is of the trial if it began no earlier.
    let tries = stance(state, request.now) == Stance::Trial
        && state.mark() == request.mark
        && since + TRIAL >= state.time();
    match fate {
        Fate::Established => {
            // SAFETY: the slot is this client's; a word that only hints.
            unsafe { write_volatile(addr_of_mut!((*row).failed_at), 0) };
            succeed(request, service, backend, since);
            if tries {
                readmit(backend, health, state, service);
            }
        }
        Fate::Waiting if tries => {
            fail_trial(
                backend,
                health,
                state,
                service,
                FailureCause::Unanswered,
                request.now,
            );
        }
        Fate::Gone if tries => {
            // The next standing client tries at once.
            let due = HealthState::ejected(request.now, state.doublings());
            if change(health, state, due) {
                tell(
                    EventKind::TrialAbandoned,
                    About {
                        service,
                        backend,
                        generation,
                        mark: request.mark,
                    },
                    FailureCause::None,
                    due,
                );
            }
        }
        Fate::Waiting | Fate::Gone => {}
    }
    0
}

/// The client was seen established at `backend` by a connect begun at `since`.
#[inline(always)]
fn succeed(request: &Request, service: u32, backend: u32, since: u64) {
    let bit = request.bit();
    let Some(health) = BACKEND_HEALTH.get_ptr_mut(backend) else {
        return;
    };
    // SAFETY: a word of a map's row, the epoch's own.
    unsafe {
        stand(
            addr_of_mut!((*health).standing[(request.epoch & 1) as usize]),
            request.epoch,
            bit,
        )
    };
    if let Some(row) = SERVICE_HEALTH.get_ptr_mut(service) {
        // SAFETY: as above.
        unsafe {
            stand(
                addr_of_mut!((*row).standing[(request.epoch & 1) as usize]),
                request.epoch,
                bit,
            )
        };
    }
    let state = state_of(health);
    if stance(state, request.now) != Stance::Suspect {
        return;
    }
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(backend) else {
        return;
    };
    // SAFETY: aligned words of a map's row.
    unsafe {
        atomic::clear(addr_of_mut!((*failures).doubted), bit);
        atomic::clear(addr_of_mut!((*failures).closed), bit);
        // A connect that began before the last failure says nothing of what came after it.
        if since <= state.time() {
            return;
        }
        atomic::store(addr_of_mut!((*failures).run), 0);
        // While it is closed to somebody, draws have to look.
        if atomic::load(addr_of!((*failures).closed)) == 0
            || request.now >= atomic::load(addr_of!((*failures).closed_until))
        {
            atomic::store(addr_of_mut!((*failures).closed), 0);
            change(health, state, HealthState::HEALTHY);
        }
    }
}

/// Adds a client to those of an epoch.
///
/// # Safety
/// `word` is an aligned word of a map's row that is the epoch's own.
#[inline(always)]
unsafe fn stand(word: *mut u64, epoch: u64, bit: u64) {
    // SAFETY: the caller's promise.
    unsafe {
        let seen = atomic::load(word);
        if Standing(seen).of(epoch) & bit != 0 {
            return;
        }
        let fresh = Standing::new(epoch, bit).0;
        if seen >> MARKS.count_ones() == fresh >> MARKS.count_ones()
            || !atomic::exchange_if(word, seen, fresh)
        {
            // The word is this epoch's, or another CPU has just made it so.
            atomic::set(word, bit);
        }
    }
}

/// Notes this connect in the client's watch, unless an earlier one there still waits for its answer; a trial goes first.
#[inline(never)]
fn watch(ctx: &SockAddrContext, request: &mut Request, chosen: u32) -> u32 {
    let Some(row) = WATCHES.get_ptr_mut(watch_slot(request.mark & 63, request.service)) else {
        return 0;
    };
    // SAFETY: an aligned word of a map's row, taken by exchange.
    unsafe {
        let seen = atomic::load(addr_of!((*row).socket));
        if seen == CLAIMED || (seen != 0 && request.trial == 0) {
            return 0;
        }
        if !atomic::exchange_if(addr_of_mut!((*row).socket), seen, CLAIMED) {
            return 0;
        }
        let generation = BACKENDS.get(chosen).map_or(0, |backend| backend.generation);
        if (*row).service != request.service {
            (*row).failed_at = 0;
        }
        (*row).cookie = bpf_get_socket_cookie(ctx.sock_addr.cast());
        (*row).since = request.now;
        (*row).service = request.service;
        (*row).backend = chosen;
        (*row).generation = generation;
        let socket = socket::of_context(ctx);
        (*row).place = socket::place_number(socket);
        request.watched = 1;
        // What was a pointer is a number when it is read back.
        write_volatile(addr_of_mut!((*row).socket), socket as u64);
    }
    0
}

/// A walk over the slots of a ring, tier by tier.
#[repr(C)]
struct Walk {
    ring: Ring,
    bit: u64,
    now: u64,
    service: u32,
    /// Of the tier: its first slot, its slots, and where in it the walk began.
    first: u32,
    len: u32,
    start: u32,
    /// Never this one.
    but: u32,
    /// [`NONE`] until a backend is found, and its tier.
    found: u32,
    tier: u32,
    /// One that met the walk and waits for a trial; [`NONE`] for none.
    due: u32,
}

impl Walk {
    #[inline(always)]
    fn new(ring: Ring, service: u32, but: u32, bit: u64, now: u64) -> Self {
        // Nothing here is a constant that a step compares: verifiers before Linux 6.7 look at one step only, and would
        // take what they know of the first for true of all.
        Self {
            ring,
            bit,
            now,
            service,
            first: ring.first(),
            len: ring.len(),
            start: nth(ring.len(), random()),
            but,
            found: NONE,
            tier: 0,
            due: NONE,
        }
    }

    /// Comes to a later tier.
    #[inline(always)]
    fn enter(&mut self, tier: u32) {
        let Some(slot) = SLOTS.get_ptr(self.ring.span().wrapping_add(tier.wrapping_sub(1))) else {
            return;
        };
        // SAFETY: one aligned word, written whole.
        let head = TierHead(unsafe { read_volatile(slot) }.0);
        self.first = self.ring.span().wrapping_add(head.offset());
        self.len = head.len();
        self.start = nth(self.len, random());
    }

    /// The backend in the slot of a step, if it is the service's. A tier's first step comes to the tier. That the step alone
    /// says where the walk is keeps the verifier's own walk short.
    #[inline(always)]
    fn at(&mut self, step: u64) -> Option<u32> {
        let at = step as u32 % STEPS_PER_TIER;
        if at == 0 {
            let tier = step as u32 / STEPS_PER_TIER;
            if tier != 0 {
                self.enter(tier);
            }
            return None;
        }
        let at = at - 1;
        if at >= self.len {
            return None;
        }
        let mut place = self.start.wrapping_add(at);
        if place >= self.len {
            place = place.wrapping_sub(self.len);
        }
        let slot = SLOTS.get_ptr(self.first.wrapping_add(place))?;
        // SAFETY: one aligned word, written whole.
        let slot = unsafe { read_volatile(slot) };
        let backend = BACKENDS.get(slot.backend())?;
        (judge(self.service, slot, backend) == Drawn::Ours).then_some(slot.backend())
    }
}

/// What a step returns to be called again, or not.
const GO_ON: i64 = 0;
const END: i64 = 1;

/// One comes to the tier, the others look at a slot each.
const STEPS_PER_TIER: u32 = WALK_MAX + 1;

/// Looks for a backend that can be had: in the first tier, then in the next ones. In each, at most [`WALK_MAX`] slots from a
/// random start, one after the other: few random redraws would leak onto the dead backend.
#[inline(never)]
fn walk(request: &mut Request) -> u32 {
    let mut walk = Walk::new(
        request.ring,
        request.service,
        request.drawn,
        request.bit(),
        request.now,
    );
    run(u32::from(request.ring.tiers()), step, &mut walk);
    if walk.found != NONE {
        request.tier = walk.tier;
        return walk.found;
    }
    // With nothing better, the connect may be the trial of one whose time is over.
    if let Some(health) = BACKEND_HEALTH.get_ptr_mut(walk.due) {
        request.drawn = walk.due;
        let state = state_of(health);
        if stance(state, request.now) == Stance::Due && begin_trial(request, health, state) {
            return walk.due;
        }
    }
    NONE
}

type Step = unsafe extern "C" fn(u64, *mut c_void) -> i64;

/// Calls `step` for the slots of so many tiers, until it returns [`END`].
#[inline(always)]
fn run(tiers: u32, step: Step, walk: &mut Walk) {
    let tiers = if tiers < TIERS_MAX as u32 {
        tiers
    } else {
        TIERS_MAX as u32
    };
    // SAFETY: the helper calls `step` with this frame's `walk`, as long as this call lasts.
    unsafe {
        bpf_loop(
            tiers * STEPS_PER_TIER,
            step as *mut c_void,
            core::ptr::from_mut(walk).cast(),
            0,
        )
    };
}

/// Takes the first backend that is healthy, or suspect and not closed to this client.
unsafe extern "C" fn step(index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `run` passes its walk.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    let Some(id) = walk.at(index) else {
        return GO_ON;
    };
    if id == walk.but {
        return GO_ON;
    }
    let Some(health) = BACKEND_HEALTH.get_ptr(id) else {
        return GO_ON;
    };
    match stance(state_of(health), walk.now) {
        Stance::Open => {}
        Stance::Suspect if !is_closed(id, walk.bit, walk.now) => {}
        Stance::Due => {
            walk.due = id;
            return GO_ON;
        }
        Stance::Suspect | Stance::Ejected | Stance::Trial => return GO_ON,
    }
    walk.tier = index as u32 / STEPS_PER_TIER;
    walk.found = id;
    END
}

/// Takes the client's standing at every backend that the walk meets, so that its next connects are watched again.
unsafe extern "C" fn unseat(index: u64, walk: *mut c_void) -> i64 {
    // SAFETY: `run` passes its walk.
    let walk = unsafe { &mut *walk.cast::<Walk>() };
    if let Some(id) = walk.at(index)
        && let Some(health) = BACKEND_HEALTH.get_ptr_mut(id)
    {
        // SAFETY: aligned words of a map's row.
        unsafe {
            atomic::clear(addr_of_mut!((*health).standing[0]), walk.bit);
            atomic::clear(addr_of_mut!((*health).standing[1]), walk.bit);
        }
    }
    GO_ON
}

/// A connect that failed, and may count against its backend.
#[repr(C)]
pub struct Failure {
    pub id: u32,
    pub service: u32,
    pub generation: u32,
    pub mark: u32,
    /// A [`FailureCause`].
    pub cause: u8,
    /// 1 if the socket's first time-out was held against the backend already.
    pub again: u8,
    pub reserved: [u8; 6],
    pub cookie: u64,
}

impl Failure {
    #[inline(always)]
    fn bit(&self) -> u64 {
        1 << (self.mark & 63)
    }
    #[inline(always)]
    fn is_unanswered(&self) -> bool {
        self.cause == FailureCause::Unanswered as u8 || self.cause == FailureCause::TimedOut as u8
    }
    /// What of it counts that did not yet.
    #[inline(always)]
    fn weight(&self) -> u64 {
        let whole = if self.is_unanswered() {
            WEIGHT_UNANSWERED
        } else {
            WEIGHT_FAILED
        };
        if self.again != 0 {
            whole - WEIGHT_UNANSWERED
        } else {
            whole
        }
    }
    #[inline(always)]
    fn cause(&self) -> FailureCause {
        match self.cause {
            1 => FailureCause::Refused,
            2 => FailureCause::Unreachable,
            _ => FailureCause::Unanswered,
        }
    }
    #[inline(always)]
    fn about(&self) -> About {
        About {
            service: self.service,
            backend: self.id,
            generation: self.generation,
            mark: self.mark,
        }
    }
}

/// Holds a failure against a backend.
#[inline(never)]
pub fn hold_against(failure: &Failure) -> u32 {
    let Some(settings) = SETTINGS.get(0) else {
        return 0;
    };
    let Some(limits) = SERVICE_LIMITS.get(failure.service) else {
        return 0;
    };
    if settings.passive_health == 0 || limits.flags & service_flags::NO_PASSIVE_HEALTH != 0 {
        return 0;
    }
    let (now, epoch) = clock();
    let Some(health) = BACKEND_HEALTH.get_ptr_mut(failure.id) else {
        return 0;
    };
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(failure.id) else {
        return 0;
    };
    let state = state_of(health);
    match stance(state, now) {
        Stance::Trial => {
            if is_trial(failure, state) {
                fail_trial(
                    failure.id,
                    health,
                    state,
                    failure.service,
                    failure.cause(),
                    now,
                );
            }
            return 0;
        }
        // On its way when the backend was ejected.
        Stance::Ejected | Stance::Due => return 0,
        Stance::Open | Stance::Suspect => {}
    }
    if failure.weight() == 0 {
        return 0;
    }
    let standing = service_standing(failure.service, epoch);
    if !failure.is_unanswered() {
        // SAFETY: aligned words of a map's row.
        let before = unsafe { atomic::load(addr_of!((*failures).doubted)) };
        // Who alone has a vote ejects by it.
        if before & failure.bit() != 0 && standing != failure.bit() {
            close(failure, now);
        } else {
            // SAFETY: as above.
            unsafe { atomic::set(addr_of_mut!((*failures).doubted), failure.bit()) };
        }
    }
    // The later of two failures at once may lose; the backend is suspect either way.
    change(health, state, HealthState::suspect(now));
    if !has_vote(standing, failure.bit()) {
        count(Counter::FailureNotCounted);
        return 0;
    }
    if disbelieve(failure) {
        return 0;
    }
    let run = add_to_run(failure);
    match judge_run(run, standing) {
        Judgement::Keep => {}
        Judgement::Close => close(failure, now),
        Judgement::Eject => {
            // Silence may be the network's: never leave a service without a backend for it.
            if !failure.is_unanswered() || another_lives(failure, now) {
                eject(failure, health, limits.allowed_total, now);
            }
        }
    }
    0
}

#[inline(always)]
fn add_to_run(failure: &Failure) -> u64 {
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(failure.id) else {
        return 0;
    };
    let mut run = 0;
    for _ in 0..TRIES {
        // SAFETY: an aligned word of a map's row, changed by exchange.
        unsafe {
            let seen = atomic::load(addr_of!((*failures).run));
            run = add_failure(seen, failure.bit(), failure.weight());
            if atomic::exchange_if(addr_of_mut!((*failures).run), seen, run) {
                break;
            }
        }
    }
    run
}

/// Whether the failed socket is the one that tries the backend.
#[inline(always)]
fn is_trial(failure: &Failure, state: HealthState) -> bool {
    if state.mark() != failure.mark {
        return false;
    }
    let Some(watch) = WATCHES.get_ptr(watch_slot(failure.mark & 63, failure.service)) else {
        return false;
    };
    // SAFETY: words of a map's row. Rows of MPTCP hold no cookie: there the client and the backend must do.
    unsafe {
        read_volatile(addr_of!((*watch).backend)) == failure.id
            && (failure.cookie == 0 || read_volatile(addr_of!((*watch).cookie)) == failure.cookie)
    }
}

/// Closes the backend to this client alone. That needs no quorum, and hurts nobody else.
#[inline(always)]
fn close(failure: &Failure, now: u64) {
    let Some(failures) = BACKEND_FAILURES.get_ptr_mut(failure.id) else {
        return;
    };
    let until = now + FIRST_EJECTION;
    // SAFETY: aligned words of a map's row.
    let before = unsafe {
        let before = atomic::load(addr_of!((*failures).closed));
        // Those to whom it was closed earlier, and whose time is over, are not shut out anew.
        if now >= atomic::load(addr_of!((*failures).closed_until)) {
            atomic::store(addr_of_mut!((*failures).closed), failure.bit());
        } else {
            atomic::set(addr_of_mut!((*failures).closed), failure.bit());
        }
        atomic::store(addr_of_mut!((*failures).closed_until), until);
        before
    };
    if before & failure.bit() == 0 {
        tell(
            EventKind::Closed,
            failure.about(),
            failure.cause(),
            HealthState::suspect(until),
        );
    }
}

/// A client that fails at two backends with no success between has a trouble of its own, more likely than they: its failures
/// do not count until it is seen established again.
#[inline(always)]
fn disbelieve(failure: &Failure) -> bool {
    let Some(watch) = WATCHES.get_ptr_mut(watch_slot(failure.mark & 63, failure.service)) else {
        return false;
    };
    // SAFETY: words of a map's row that is this client's own; a lost write costs a hint.
    let before = unsafe {
        if read_volatile(addr_of!((*watch).service)) != failure.service {
            // The slot is another service's while that one's connect is watched.
            if atomic::load(addr_of!((*watch).socket)) != 0 {
                return false;
            }
            write_volatile(addr_of_mut!((*watch).service), failure.service);
            write_volatile(addr_of_mut!((*watch).failed_at), 0);
        }
        let before = read_volatile(addr_of!((*watch).failed_at));
        write_volatile(addr_of_mut!((*watch).failed_at), failure.id.wrapping_add(1));
        before
    };
    if before == 0 || before == failure.id.wrapping_add(1) {
        return false;
    }
    if let Some(row) = SERVICE_HEALTH.get_ptr_mut(failure.service) {
        // SAFETY: aligned words of a map's row.
        unsafe {
            atomic::clear(addr_of_mut!((*row).standing[0]), failure.bit());
            atomic::clear(addr_of_mut!((*row).standing[1]), failure.bit());
        }
    }
    let mut walk = first_tier(failure, 0);
    run(1, unseat, &mut walk);
    tell(
        EventKind::Disbelieved,
        failure.about(),
        failure.cause(),
        HealthState::HEALTHY,
    );
    true
}

#[inline(always)]
fn first_tier(failure: &Failure, now: u64) -> Walk {
    // SAFETY: one aligned word, written whole.
    let ring = crate::maps::RINGS
        .get_ptr(failure.service)
        .map_or(Ring::EMPTY, |ring| unsafe { read_volatile(ring) });
    Walk::new(ring, failure.service, failure.id, failure.bit(), now)
}

/// Whether the first tier has another backend that can be had.
#[inline(always)]
fn another_lives(failure: &Failure, now: u64) -> bool {
    let mut walk = first_tier(failure, now);
    run(1, step, &mut walk);
    walk.found != NONE
}

#[inline(always)]
fn eject(failure: &Failure, health: *mut BackendHealthRow, allowed: u64, now: u64) {
    let Some(service) = SERVICE_HEALTH.get_ptr_mut(failure.service) else {
        return;
    };
    let ejected = HealthState::ejected(now + back_off(0, random()), 0);
    let mut counted = false;
    for _ in 0..TRIES {
        // SAFETY: an aligned word of a map's row; only programs write it.
        unsafe {
            let total = atomic::load(addr_of!((*service).ejected_total));
            if total >= allowed {
                break;
            }
            if atomic::exchange_if(addr_of_mut!((*service).ejected_total), total, total + 1) {
                counted = true;
                break;
            }
        }
    }
    if !counted {
        count(Counter::EjectionCapped);
        tell_seldom(EventKind::Capped as u32, failure.service, 0);
        close(failure, now);
        return;
    }
    for _ in 0..TRIES {
        let seen = state_of(health);
        match stance(seen, now) {
            Stance::Open | Stance::Suspect => {}
            Stance::Ejected | Stance::Due | Stance::Trial => break,
        }
        if change(health, seen, ejected) {
            if let Some(failures) = BACKEND_FAILURES.get_ptr_mut(failure.id) {
                // SAFETY: an aligned word of a map's row.
                unsafe { atomic::store(addr_of_mut!((*failures).run), 0) };
            }
            tell(
                EventKind::Ejected,
                failure.about(),
                failure.cause(),
                ejected,
            );
            return;
        }
    }
    // Another CPU has ejected it.
    // SAFETY: as above.
    unsafe { atomic::add(addr_of_mut!((*service).ejected_total), u64::MAX) };
}
