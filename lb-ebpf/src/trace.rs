//! What a run of the pipeline leaves behind: counters and flow table entries, or, for
//! `weir explain`, a record of its decisions and nothing else.

use lb_common::{backend::BackendSlot, explain::Explanation, stats::Reason};

use crate::maps;

/// What a run of the pipeline leaves behind.
pub trait Trace {
    /// Whether flow tables may be written.
    const WRITES_FLOWS: bool;

    /// Writes a decision down.
    fn note(&self, write: impl FnOnce(&mut Explanation));

    /// Counts a packet that was sent to a backend.
    fn sent(&self, slot: BackendSlot, service: u32, bytes: u64, opening: bool, reason: Reason);

    /// Counts what a packet is, beside what becomes of it.
    fn count(&self, what: Reason);

    /// Counts a packet that was passed, or dropped before its service was known.
    fn left(&self, reason: Reason);

    /// Counts a packet that its service dropped.
    fn dropped(&self, service: u32, reason: Reason);
}

/// The attached program: it counts.
pub struct Count;

impl Trace for Count {
    const WRITES_FLOWS: bool = true;

    #[inline(always)]
    fn note(&self, _: impl FnOnce(&mut Explanation)) {}

    #[inline(always)]
    fn sent(&self, slot: BackendSlot, service: u32, bytes: u64, opening: bool, _: Reason) {
        maps::count_sent(slot, service, bytes, opening);
    }

    #[inline(always)]
    fn count(&self, what: Reason) {
        maps::count_reason(what);
    }

    #[inline(always)]
    fn left(&self, reason: Reason) {
        maps::count_reason(reason);
    }

    #[inline(always)]
    fn dropped(&self, service: u32, reason: Reason) {
        maps::count_dropped(service);
        maps::count_reason(reason);
    }
}

/// The explaining program: it writes down what it decides.
pub struct Explain(*mut Explanation);

impl Explain {
    /// Clears this CPU's record.
    #[inline(always)]
    pub fn start() -> Option<Self> {
        let record = maps::explanation()?;
        // SAFETY: a per-CPU map element.
        unsafe { *record = Explanation::default() };
        Some(Self(record))
    }

    /// Returns this CPU's record as it is.
    #[inline(always)]
    pub fn resume() -> Option<Self> {
        maps::explanation().map(Self)
    }
}

impl Trace for Explain {
    const WRITES_FLOWS: bool = false;

    #[inline(always)]
    fn note(&self, write: impl FnOnce(&mut Explanation)) {
        // SAFETY: a per-CPU map element, and the only reference to it in this run.
        write(unsafe { &mut *self.0 });
    }

    #[inline(always)]
    fn sent(&self, _: BackendSlot, _: u32, _: u64, _: bool, reason: Reason) {
        self.note(|e| e.reason = reason as u32);
    }

    #[inline(always)]
    fn count(&self, _: Reason) {}

    #[inline(always)]
    fn left(&self, reason: Reason) {
        self.note(|e| e.reason = reason as u32);
    }

    #[inline(always)]
    fn dropped(&self, _: u32, reason: Reason) {
        self.note(|e| e.reason = reason as u32);
    }
}
