use std::time::{Duration, Instant};

use crate::model::{HealthCheck, HealthState};

/// What a fall from up adds to the penalty of a backend that flaps.
const PENALTY: f64 = 1.0;
/// The penalty halves in this time.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// The most that the penalty multiplies `rise` by.
const MAX_FACTOR: f64 = 8.0;

/// The health of one backend, from the results of its probes. Pure: time is an argument.
///
/// ```text
///            a success                 `fall` failures
/// unknown ───────────────▶   up   ────────────────────▶ suspect
///    │                        ▲                          │   │
///    │ `fall` failures        │   `rise` successes       │   │ `dead_after` passes
///    └────────────────────────┼──────────────────────────┘   │ or there is proof
///                             │                              ▼
///                             └───────────────────────────  dead
///                                 `rise` successes
/// ```
///
/// A backend that falls often has to show more successes before it is up again: each fall adds 1
/// to a penalty that halves every minute (as RFC 2439 §4.2 damps routes), and `rise` is multiplied
/// by the penalty, 8 times at the most. The first fall in a while costs nothing.
#[derive(Clone, Debug)]
pub struct Machine {
    rise: u32,
    fall: u32,
    dead_after: Duration,
    state: HealthState,
    since: Instant,
    /// Whether `fall` failures in a row were seen here. An earlier daemon's suspicion counts for
    /// new flows, but nobody's flows are given up on hearsay.
    fell: bool,
    /// Results of the same kind in a row.
    row: u32,
    row_ok: bool,
    penalty: f64,
    penalty_at: Instant,
}

impl Machine {
    /// Returns the health of a backend that was not probed yet: `state` is what an earlier daemon
    /// thought of it, or unknown. One that was suspect then is given its time anew, and is not dead
    /// before `fall` probes in a row have failed here as well.
    pub fn new(check: &HealthCheck, state: HealthState, now: Instant) -> Self {
        Self {
            rise: check.rise,
            fall: check.fall,
            dead_after: check.dead_after,
            state,
            since: now,
            fell: false,
            row: 0,
            row_ok: false,
            penalty: 0.0,
            penalty_at: now,
        }
    }

    /// Returns the state.
    pub fn state(&self) -> HealthState {
        self.state
    }

    /// Takes in the result of a probe. Returns the state if it changed.
    pub fn probed(&mut self, ok: bool, now: Instant) -> Option<HealthState> {
        if ok != self.row_ok {
            self.row = 0;
            self.row_ok = ok;
        }
        self.row = self.row.saturating_add(1);
        self.fell |= !ok && self.row >= self.fall;
        let next = match (self.state, ok) {
            (HealthState::Unknown, true) => HealthState::Up,
            (HealthState::Suspect | HealthState::Dead, true) if self.row >= self.needed(now) => {
                HealthState::Up
            }
            (HealthState::Unknown | HealthState::Up, false) if self.row >= self.fall => {
                self.penalty = self.penalty(now) + PENALTY;
                self.penalty_at = now;
                HealthState::Suspect
            }
            (state, _) => state,
        };
        self.enter(next, now).or_else(|| self.tick(now))
    }

    /// Takes in that time passed. Returns the state if it changed.
    pub fn tick(&mut self, now: Instant) -> Option<HealthState> {
        let due = self.deadline().is_some_and(|at| at <= now);
        due.then_some(HealthState::Dead)
            .and_then(|dead| self.enter(dead, now))
    }

    /// Takes in proof that the backend is dead: nobody waits for `dead_after` then.
    pub fn proof_of_death(&mut self, now: Instant) -> Option<HealthState> {
        self.row = 0;
        self.enter(HealthState::Dead, now)
    }

    /// Returns when the state changes by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let falls = self.state == HealthState::Suspect && self.fell;
        falls.then(|| self.since + self.dead_after)
    }

    /// Returns how many successes in a row bring it up.
    pub fn needed(&self, now: Instant) -> u32 {
        let factor = self.penalty(now).clamp(1.0, MAX_FACTOR);
        (f64::from(self.rise) * factor).floor() as u32
    }

    fn penalty(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.penalty_at);
        self.penalty * 0.5_f64.powf(age.as_secs_f64() / HALF_LIFE.as_secs_f64())
    }

    fn enter(&mut self, state: HealthState, now: Instant) -> Option<HealthState> {
        if state == self.state {
            return None;
        }
        self.state = state;
        self.since = now;
        Some(state)
    }
}
