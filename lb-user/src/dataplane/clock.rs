//! The kernel's jiffies, in which flow entries are dated.

use std::time::Duration;

/// A time in jiffies, the kernel's 64-bit counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Jiffies(pub u64);

/// What the clock showed, and how fast it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// The time.
    pub now: Jiffies,
    /// Jiffies a second: the kernel's `CONFIG_HZ`.
    pub hz: u64,
}

/// What `CONFIG_HZ` can be.
const FREQUENCIES: [u64; 4] = [100, 250, 300, 1000];
/// How well the right frequency fits, in seconds: while the kernel boots, its first ticks come late.
const TOLERANCE: f64 = 1.0;
/// And for each second since: a tick is a whole number of nanoseconds (300 of 3,333,333 ns are less
/// than a second), and clocks are slewed. The frequencies differ by far more.
const DRIFT: f64 = 1e-5;

impl Clock {
    /// Returns the clock from one reading of jiffies and of the monotonic clock at the same time.
    ///
    /// Jiffies start at -300 s as a 32-bit number (`INITIAL_JIFFIES`, so that wrap-around bugs show
    /// after five minutes), and the monotonic clock starts with them at 0: of the frequencies that
    /// a kernel can be built with, one fits. When jiffies wrap around, all fit for a moment: then
    /// there is nothing to return, and a later reading tells.
    pub fn from_reading(jiffies: u64, monotonic: Duration) -> Option<Self> {
        let error = |hz: u64| {
            let start = u64::from(((-300_i64) * hz as i64) as u32);
            let elapsed = jiffies.wrapping_sub(start) as i64 as f64 / hz as f64;
            (elapsed - monotonic.as_secs_f64()).abs()
        };
        let tolerance = TOLERANCE.max(monotonic.as_secs_f64() * DRIFT);
        let mut fits = FREQUENCIES.into_iter().filter(|hz| error(*hz) < tolerance);
        let hz = fits.next()?;
        fits.next().is_none().then_some(Self {
            now: Jiffies(jiffies),
            hz,
        })
    }

    /// Returns how long ago a flow entry was written: `last` is the low half of jiffies.
    pub fn age_of(&self, last: u32) -> Duration {
        // An entry that was written since the clock was read has a negative age: none.
        let ticks = (self.now.0 as u32).wrapping_sub(last) as i32;
        self.duration(u64::try_from(ticks).unwrap_or(0))
    }

    /// Returns how long ago `then` was.
    pub fn since(&self, then: Jiffies) -> Duration {
        self.duration(self.now.0.saturating_sub(then.0))
    }

    fn duration(&self, ticks: u64) -> Duration {
        Duration::from_secs(ticks / self.hz)
            + Duration::from_nanos(ticks % self.hz * 1_000_000_000 / self.hz)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frequency_is_recognised_early_and_late() {
        for hz in FREQUENCIES {
            for uptime in [1, 60, 290, 310, 86_400, 5 * 365 * 86_400] {
                let start = u64::from((-300 * hz as i64) as u32);
                let wrapped = Clock::from_reading(1 << 32, Duration::from_secs(300));
                assert_eq!(wrapped, None, "then all are alike");
                let clock = Clock::from_reading(start + uptime * hz, Duration::from_secs(uptime));
                let found = clock.map(|clock| clock.hz);
                assert_eq!(found, Some(hz), "{hz} ticks a second, up for {uptime} s");
            }
        }
    }

    #[test]
    fn a_tick_of_whole_nanoseconds_is_recognised_after_years() {
        for uptime in [1, 86_400, 20_000_000, 300_000_000] {
            let ticks = uptime * 1_000_000_000 / 3_333_333;
            let start = u64::from((-300 * 300_i64) as u32);
            let clock = Clock::from_reading(start + ticks, Duration::from_secs(uptime));
            assert_eq!(clock.map(|clock| clock.hz), Some(300), "up for {uptime} s");
        }
    }

    #[test]
    fn ages_survive_the_wrap_around_of_the_low_half() {
        let clock = Clock {
            now: Jiffies(0x1_0000_0005),
            hz: 250,
        };
        assert_eq!(clock.age_of(0xffff_ffff), Duration::from_millis(24));
        assert_eq!(clock.age_of(5), Duration::ZERO);
        assert_eq!(
            clock.age_of(6),
            Duration::ZERO,
            "written after the clock was read"
        );
        assert_eq!(
            clock.since(Jiffies(0x1_0000_0000)),
            Duration::from_millis(20)
        );
    }
}
