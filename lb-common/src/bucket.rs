//! Token buckets: rates of packets, of new flows and of half-open entries.
//!
//! The generic cell rate algorithm (ITU-T I.371 annex A, the virtual scheduling form): a bucket is
//! the time at which it would be full again, and nothing else. Time is in jiffies with
//! [`FRACTION`] bits behind the point: every packet of a limited service asks what time it is, and
//! jiffies are one read of memory. The program's own answers are rarer, and have the exact clock and a
//! form of their own, [`crate::rate`].

/// Bits of a time behind the point: 2^-24 of a jiffy. At 100 jiffies a second ten million packets
/// a second are 168 of these units apart.
pub const FRACTION: u32 = 24;

/// Returns a time in a bucket's unit from the kernel's jiffies.
#[inline(always)]
pub const fn time(jiffies: u64) -> u64 {
    jiffies << FRACTION
}

/// How often something may happen. In a bucket's unit of time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Rate {
    /// How far apart packets are at this rate; 0 for no limit.
    pub interval: u64,
    /// How far ahead of the clock a bucket may get: the burst.
    pub tolerance: u64,
}

impl Rate {
    /// The highest rate, per second.
    pub const MAX: u32 = 10_000_000;

    /// Returns the rate of so many packets a second, at so many jiffies a second. The burst is
    /// what may come at once; never less than what comes in a jiffy, which is all at once to a
    /// clock of jiffies.
    pub const fn new(per_second: u32, burst: u32, hz: u64) -> Self {
        let interval = time(hz) / per_second as u64;
        let burst = burst as u64 * interval;
        let jiffy = time(1) + interval;
        Self {
            interval,
            tolerance: if burst > jiffy { burst } else { jiffy },
        }
    }

    /// Returns whether there is no limit.
    #[inline(always)]
    pub const fn is_none(&self) -> bool {
        self.interval == 0
    }

    /// Takes one packet's worth out of a bucket. Returns what the bucket is then, and whether the
    /// packet is within the rate. A bucket that is further ahead than the burst, since the rate
    /// was another one or the bucket is another service's as well, counts as empty.
    #[inline(always)]
    pub const fn take(&self, bucket: u64, now: u64) -> (u64, bool) {
        let empty = now + self.tolerance;
        let start = if bucket < now { now } else { bucket };
        let start = if start > empty { empty } else { start };
        let next = start + self.interval;
        if next > empty {
            (start, false)
        } else {
            (next, true)
        }
    }
}

/// What a service's packets are limited to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Rates {
    /// Packets of a source.
    pub source_packets: Rate,
    /// Opening packets of a source.
    pub source_new_flows: Rate,
    /// Packets.
    pub packets: Rate,
    /// Opening packets.
    pub new_flows: Rate,
    /// Opening packets on rows in transition that may make a half-open entry.
    pub half_open: Rate,
}

/// The buckets of a service, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct ServiceBuckets {
    /// Of its packets.
    pub packets: u64,
    /// Of its opening packets.
    pub new_flows: u64,
    /// Of the half-open entries made.
    pub half_open: u64,
}

/// The buckets of the sources that share a place, on one CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct SourceBuckets {
    /// Of packets.
    pub packets: u64,
    /// Of opening packets.
    pub new_flows: u64,
}

/// Returns the two places of a source in a table of `2 * len` places, `len` a power of two: one in
/// each half, which have nothing to do with one another.
///
/// A source is only over its rate if both of its places are. With `n` other sources over theirs,
/// the chance that both places are taken by such is (n / len)^2 at most.
#[inline(always)]
pub const fn places(hash: u64, len: u32) -> (u32, u32) {
    let mask = len - 1;
    (hash as u32 & mask, len + ((hash >> 32) as u32 & mask))
}

const _: () = assert!(size_of::<Rates>() == 80);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs arrivals, as gaps in jiffies, through a bucket. Returns when those came that were let
    /// in.
    fn run(rate: Rate, gaps: &[u64]) -> Vec<u64> {
        let (mut bucket, mut now) = (0, 1_000_000);
        let mut times = Vec::new();
        for gap in gaps {
            now += gap;
            let (next, within) = rate.take(bucket, time(now));
            bucket = next;
            if within {
                times.push(now);
            }
        }
        times
    }

    #[test]
    fn a_burst_is_let_in_and_then_the_rate() {
        let rate = Rate::new(100, 50, 1000);
        assert_eq!(run(rate, &[0; 500]).len(), 50, "at once");
        // Ten seconds of a packet in every jiffy: the burst, and a hundred a second.
        let count = run(rate, &[1; 10_000]).len();
        assert!((1049..=1051).contains(&count), "{count}");
        assert!(Rate::default().is_none());
    }

    #[test]
    fn a_rate_beyond_one_a_jiffy_is_met_without_any_burst() {
        for (per_second, hz) in [(50_000, 100), (1_000_000, 250), (Rate::MAX, 1000)] {
            let rate = Rate::new(per_second, 1, hz);
            let of_jiffy = (u64::from(per_second) / hz) as usize;
            let mut gaps = Vec::new();
            for _ in 0..20 {
                gaps.push(1);
                gaps.extend(std::iter::repeat_n(0, of_jiffy - 1));
            }
            let all = gaps.len();
            assert_eq!(run(rate, &gaps).len(), all, "{per_second} at {hz} Hz");
        }
    }

    #[test]
    fn a_bucket_of_another_rate_does_not_block_for_longer_than_this_one_would() {
        let slow = Rate::new(1, 1_000_000, 100);
        let mut bucket = 0;
        for _ in 0..1_000_000 {
            bucket = slow.take(bucket, time(500)).0;
        }
        let rate = Rate::new(1000, 100, 100);
        let (bucket, within) = rate.take(bucket, time(500));
        assert!(!within);
        assert!(rate.take(bucket, time(502)).1);
    }

    #[test]
    fn the_two_places_of_a_source_are_in_two_halves() {
        for hash in [0, u64::MAX, 0x1234_5678_9abc_def0] {
            let (a, b) = places(hash, 256);
            assert!(a < 256 && (256..512).contains(&b));
        }
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_the_burst_and_the_rate(
            per_second in 1_u32..5000, burst in 1_u32..200, hz in prop::sample::select(vec![100_u64, 250, 1000]),
            gaps in prop::collection::vec(0_u64..40, 1..600),
        ) {
            let rate = Rate::new(per_second, burst, hz);
            let times = run(rate, &gaps);
            let burst = f64::from(burst).max(f64::from(per_second) / hz as f64 + 1.0);
            for (first, from) in times.iter().enumerate() {
                for (last, to) in times.iter().enumerate().skip(first) {
                    let allowed = burst + (to - from) as f64 * f64::from(per_second) / hz as f64;
                    // Rounding of the interval makes the rate at most 1 % higher.
                    prop_assert!((last - first + 1) as f64 <= allowed * 1.01 + 1.0);
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_always_let_in(
            per_second in 1_u32..1000, slack in 0_u64..3, hz in prop::sample::select(vec![100_u64, 250, 1000]),
            count in 1_usize..300,
        ) {
            let rate = Rate::new(per_second, 1, hz);
            let gap = hz.div_ceil(u64::from(per_second)) + slack;
            prop_assert_eq!(run(rate, &vec![gap; count]).len(), count);
        }
    }
}
