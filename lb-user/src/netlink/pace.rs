use std::time::Duration;

use tokio::time::Instant;

/// After a change the kernel mostly has more to say: wait this long, then look once.
const FIRST: Duration = Duration::from_millis(10);

/// When to look again, while things change: soon after the first change, and less and less often
/// while it goes on, so that a router with a restless table costs no CPU.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    most: Duration,
    pause: Duration,
    looked: Option<Instant>,
    due: Option<Instant>,
}

impl Pace {
    /// Returns a pace with the longest pause that it may have. When nothing changed for as long,
    /// the next look comes soon again.
    pub const fn new(most: Duration) -> Self {
        Self {
            most,
            pause: FIRST,
            looked: None,
            due: None,
        }
    }

    /// Notes a change.
    pub fn note(&mut self, now: Instant) {
        if self.due.is_some() {
            return;
        }
        let quiet = self.looked.is_none_or(|looked| now >= looked + self.most);
        self.pause = if quiet {
            FIRST
        } else {
            (self.pause * 2).min(self.most)
        };
        self.due = Some(now + self.pause);
    }

    /// Returns when to look, if there was a change.
    pub const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns whether it is time to look.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Notes that everything was looked at.
    pub const fn looked(&mut self, now: Instant) {
        self.looked = Some(now);
        self.due = None;
    }

    /// Notes that looking failed: it is to be tried again.
    pub fn failed(&mut self, now: Instant) {
        self.looked = Some(now);
        self.pause = self.most;
        self.due = Some(now + self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(1);

    #[test]
    fn looks_get_rarer_while_changes_keep_coming_and_quick_again_after_quiet() {
        let start = Instant::now();
        let mut pace = Pace::new(MOST);
        let mut now = start;
        let mut looks = Vec::new();
        while now < start + Duration::from_secs(10) {
            pace.note(now);
            if pace.is_due(now) {
                looks.push(now);
                pace.looked(now);
            }
            now += Duration::from_millis(1);
        }
        assert!(looks[0] <= start + 2 * FIRST, "the first comes soon");
        assert!((10..20).contains(&looks.len()), "{} looks", looks.len());
        let last = looks.windows(2).last().unwrap();
        assert!(last[1] - last[0] >= MOST && last[1] - last[0] < 2 * MOST);
        now += MOST;
        pace.looked(now);
        now += MOST;
        pace.note(now);
        assert_eq!(pace.due(), Some(now + FIRST));
    }

    #[test]
    fn a_failed_look_is_tried_again() {
        let now = Instant::now();
        let mut pace = Pace::new(MOST);
        pace.note(now);
        pace.failed(now + FIRST);
        assert_eq!(pace.due(), Some(now + FIRST + MOST));
    }
}
