use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::machine::Machine;
use super::probe::probe;
use crate::model::{BackendId, HealthCheck, HealthState};

/// Probes under way at the same time: each needs a descriptor, and a process has 1024 by default.
const CONCURRENT: usize = 256;

/// A backend to be probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its address.
    pub address: IpAddr,
    /// How.
    pub check: HealthCheck,
}

/// A backend's health changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The backend.
    pub id: BackendId,
    /// Its new state.
    pub state: HealthState,
    /// The last failure.
    pub why: Option<String>,
}

/// Probes a set of backends. Dropping it ends that.
#[derive(Debug)]
pub struct Checker {
    reports: mpsc::Sender<Report>,
    targets: BTreeMap<BackendId, Running>,
    probes: Arc<Semaphore>,
}

#[derive(Debug)]
struct Running {
    target: Target,
    task: AbortHandle,
    proofs: mpsc::Sender<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checker {
    /// Returns a checker that probes nobody yet and reports changes to `reports`.
    pub fn new(reports: mpsc::Sender<Report>) -> Self {
        Self {
            reports,
            targets: BTreeMap::new(),
            probes: Arc::new(Semaphore::new(CONCURRENT)),
        }
    }

    /// Sets whom to probe. Those that are probed alike already keep their state; the others begin
    /// as `known`, or as unknown if they were probed otherwise before. Returns whose state is not
    /// known any more.
    pub fn set_targets(
        &mut self,
        targets: BTreeMap<BackendId, Target>,
        known: impl Fn(&BackendId) -> HealthState,
    ) -> Vec<BackendId> {
        let mut ended = Vec::new();
        self.targets.retain(|id, running| {
            let same = targets.get(id) == Some(&running.target);
            if !same {
                ended.push(id.clone());
            }
            same
        });
        for (id, target) in targets {
            if self.targets.contains_key(&id) {
                continue;
            }
            let (proofs, proofs_of_death) = mpsc::channel(1);
            let state = if ended.contains(&id) {
                HealthState::Unknown
            } else {
                known(&id)
            };
            let task = tokio::spawn(watch(
                id.clone(),
                target.clone(),
                state,
                self.reports.clone(),
                self.probes.clone(),
                proofs_of_death,
            ));
            let task = task.abort_handle();
            self.targets.insert(
                id,
                Running {
                    target,
                    task,
                    proofs,
                },
            );
        }
        ended
    }

    /// Returns whether a backend is probed.
    pub fn probes(&self, id: &BackendId) -> bool {
        self.targets.contains_key(id)
    }

    /// Makes a backend dead at once: its hypervisor, or the network, is sure of it.
    pub fn proof_of_death(&self, id: &BackendId) {
        if let Some(running) = self.targets.get(id) {
            // One that is on its way already says the same.
            let _ = running.proofs.try_send(());
        }
    }
}

/// Probes one backend for good.
async fn watch(
    id: BackendId,
    target: Target,
    state: HealthState,
    reports: mpsc::Sender<Report>,
    probes: Arc<Semaphore>,
    mut proofs: mpsc::Receiver<()>,
) {
    let check = &target.check;
    let mut machine = Machine::new(check, state, Instant::now().into_std());
    let mut why = None;
    // Thousands of backends are not probed all at the same moment.
    let mut due = interval_at(Instant::now() + offset(&id, check.interval), check.interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let deadline = machine.deadline().map(Instant::from_std);
        let changed = tokio::select! {
            _ = due.tick() => {
                let Ok(_permit) = probes.acquire().await else { return };
                let result = probe(&check.probe, target.address, check.timeout).await;
                let ok = result.is_ok();
                why = result.err().map(|error| error.to_string()).or(why);
                machine.probed(ok, Instant::now().into_std())
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                machine.tick(Instant::now().into_std())
            }
            Some(()) = proofs.recv() => machine.proof_of_death(Instant::now().into_std()),
        };
        if let Some(state) = changed {
            let why = why.clone().filter(|_| state != HealthState::Up);
            let report = Report {
                id: id.clone(),
                state,
                why,
            };
            if reports.send(report).await.is_err() {
                return;
            }
        }
    }
}

/// Spreads first probes over the first interval, the same way every time.
fn offset(id: &BackendId, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    interval.mul_f64(hasher.finish() as f64 / u64::MAX as f64)
}
