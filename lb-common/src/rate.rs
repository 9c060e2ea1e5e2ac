//! How often something may happen: the generic cell rate algorithm (ITU-T I.371, annex A), in the form
//! of the "virtual scheduling algorithm". One word of state, no division, no timer.
//!
//! For the program's own answers, which are rare enough to ask the exact clock for each. What every
//! packet of a service is held against reads jiffies instead: see [`crate::bucket`].

/// A rate. Two words, written by the daemon, read by packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Rate {
    /// Nanoseconds between two events that go on for ever; 0: nothing may happen at all.
    pub interval_ns: u64,
    /// By how many nanoseconds an event may come earlier than that.
    pub tolerance_ns: u64,
}

impl Rate {
    /// Nothing may happen.
    pub const NEVER: Self = Self {
        interval_ns: 0,
        tolerance_ns: 0,
    };

    /// Returns the rate of at most `events` a second in the long run; 0 for none. After a pause a
    /// tenth of that, and at least one, may happen at once.
    pub const fn per_second(events: u32) -> Self {
        if events == 0 {
            return Self::NEVER;
        }
        // Rounded up: never more than that.
        let interval_ns = 1_000_000_000_u64.div_ceil(events as u64);
        Self {
            interval_ns,
            tolerance_ns: (events as u64 / 10).saturating_sub(1) * interval_ns,
        }
    }

    /// Returns how many events may happen at once after a pause.
    pub const fn burst(&self) -> u64 {
        match self.interval_ns {
            0 => 0,
            interval => self.tolerance_ns / interval + 1,
        }
    }

    /// Returns the state after an event at `now` (nanoseconds of a clock that does not go back), or
    /// nothing if it must not happen. `state` is what the last call returned, at first 0.
    #[inline(always)]
    pub const fn admit(&self, state: u64, now: u64) -> Option<u64> {
        if self.interval_ns == 0 || state > now.saturating_add(self.tolerance_ns) {
            return None;
        }
        let due = if state > now { state } else { now };
        Some(due.saturating_add(self.interval_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Offers an event at each of these times. Returns when one happened.
    fn happened(rate: &Rate, times: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let mut state = 0;
        let mut happened = Vec::new();
        for now in times {
            if let Some(next) = rate.admit(state, now) {
                state = next;
                happened.push(now);
            }
        }
        happened
    }

    proptest! {
        /// The limit holds for every span of time, not only on average.
        #[test]
        fn no_span_has_more_events_than_the_rate_and_one_burst(
            events in 1u32..=1_000_000,
            pauses in prop::collection::vec(
                prop_oneof![Just(0u64), 1u64..1000, 1000u64..10_000_000, 0u64..3_000_000_000], 1..400,
            ),
        ) {
            let rate = Rate::per_second(events);
            let times = pauses.iter().scan(7_u64, |now, pause| {
                *now += pause;
                Some(*now)
            });
            let happened = happened(&rate, times);
            for (first, from) in happened.iter().enumerate() {
                for (last, to) in happened.iter().enumerate().skip(first) {
                    let count = (last - first) as u64 + 1;
                    let allowed = rate.burst() + (to - from) / rate.interval_ns;
                    prop_assert!(count <= allowed, "{count} in {} ns, allowed {allowed}", to - from);
                }
            }
        }

        #[test]
        fn what_keeps_to_the_rate_is_never_refused(
            events in 1u32..=1_000_000, later in prop::collection::vec(0u64..5_000_000, 1..300),
        ) {
            let rate = Rate::per_second(events);
            let times: Vec<u64> = later.iter().scan(0_u64, |now, later| {
                *now += rate.interval_ns + later;
                Some(*now)
            }).collect();
            prop_assert_eq!(happened(&rate, times.clone()), times);
        }

        #[test]
        fn after_a_pause_a_whole_burst_may_happen_at_once_and_no_more(
            events in 1u32..=1_000_000, start in 1_000_000_000u64..1 << 60,
        ) {
            let rate = Rate::per_second(events);
            let offered = rate.burst() as usize + 5;
            let count = happened(&rate, std::iter::repeat_n(start, offered)).len() as u64;
            prop_assert_eq!(count, rate.burst());
            prop_assert_eq!(count, (u64::from(events) / 10).max(1));
        }
    }

    #[test]
    fn none_a_second_is_none_at_all() {
        assert_eq!(Rate::per_second(0), Rate::NEVER);
        assert!(happened(&Rate::NEVER, [0, 1, u64::MAX]).is_empty());
    }

    #[test]
    fn the_end_of_the_clock_is_no_overflow() {
        let rate = Rate::per_second(1);
        assert_eq!(rate.admit(u64::MAX, u64::MAX), Some(u64::MAX));
    }
}
