use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{Fuse, FusedFuture as _};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::descriptors;
use super::machine::Machine;
use super::probe::{ProbeError, probe};
use super::shortage::Shortage;
use crate::model::{BackendId, HealthCheck, HealthState};

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
    /// Why, if it is not up: the last failure, or that there is proof.
    pub why: Option<String>,
}

/// Probes a set of backends. Dropping it ends that.
#[derive(Debug)]
pub struct Checker {
    reports: mpsc::Sender<Report>,
    targets: BTreeMap<BackendId, Running>,
    means: Arc<Means>,
}

/// What all probes share.
#[derive(Debug)]
struct Means {
    /// Each probe under way needs a descriptor.
    descriptors: Semaphore,
    shortage: Shortage,
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
    /// Returns a checker that probes nobody yet and reports changes to `reports`. Takes as many
    /// descriptors for this process as its environment allows.
    pub fn new(reports: mpsc::Sender<Report>) -> Self {
        Self {
            reports,
            targets: BTreeMap::new(),
            means: Arc::new(Means {
                descriptors: Semaphore::new(descriptors::raise()),
                shortage: Shortage::default(),
            }),
        }
    }

    /// Sets whom to probe. Those that are probed alike already keep their state; the others begin
    /// as `known`, or as unknown if they were probed otherwise before. Returns whose state is not
    /// known any more.
    pub fn set_targets(
        &mut self,
        targets: BTreeMap<BackendId, Target>,
        known: impl Fn(&BackendId) -> HealthState,
    ) -> BTreeSet<BackendId> {
        let mut ended = BTreeSet::new();
        self.targets.retain(|id, running| {
            let same = targets.get(id) == Some(&running.target);
            if !same {
                ended.insert(id.clone());
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
                self.means.clone(),
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
    means: Arc<Means>,
    mut proofs: mpsc::Receiver<()>,
) {
    let check = &target.check;
    let mut machine = Machine::new(check, state, Instant::now().into_std());
    let mut failure: Option<String> = None;
    // Thousands of backends are not probed all at the same moment.
    let mut due = interval_at(Instant::now() + offset(&id, check.interval), check.interval);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The probe under way. Proofs and deadlines don't wait for it.
    let mut attempt = pin!(Fuse::terminated());
    loop {
        let deadline = machine.deadline().map(Instant::from_std);
        let (changed, why) = tokio::select! {
            _ = due.tick(), if attempt.is_terminated() => {
                attempt.set(once(&target, &means).fuse());
                continue;
            }
            result = &mut attempt => {
                if let Err(error) = &result && error.is_local() {
                    means.shortage.note(error);
                    continue;
                }
                let changed = machine.probed(result.is_ok(), Instant::now().into_std());
                failure = result.err().map(|error| error.to_string());
                (changed, failure.clone())
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                let few = || "too few successes in a row".to_owned();
                let changed = machine.tick(Instant::now().into_std());
                (changed, Some(failure.clone().unwrap_or_else(few)))
            }
            Some(()) = proofs.recv() => {
                let changed = machine.proof_of_death(Instant::now().into_std());
                (changed, Some("proof of death".to_owned()))
            }
        };
        if let Some(state) = changed {
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

/// Probes a backend once, as soon as there are the means to.
async fn once(target: &Target, means: &Means) -> Result<(), ProbeError> {
    // It is never closed; if it were, there would be no limit.
    let _descriptor = means.descriptors.acquire().await;
    probe(&target.check.probe, target.address, target.check.timeout).await
}

/// Spreads first probes over the first interval, the same way every time.
fn offset(id: &BackendId, interval: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    interval.mul_f64(hasher.finish() as f64 / u64::MAX as f64)
}
