use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Daemon, Sources};
use crate::api::{self, Socket, SocketError};
use crate::config::{Config, ConfigError};
use crate::dataplane::{self, FeatureError, LoadError, Pins, Settings};
use crate::engine::{Engine, EngineError};
use crate::health::Checker;
use crate::model::Desired;
use crate::netlink::{NetlinkError, Resolver};
use crate::state::{Directory, Slots, StateError};

/// Requests and reports that may wait for the event loop.
const QUEUE: usize = 1024;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The kernel.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The API's socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The data plane.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The network.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The declaration does not fit, or an interface can't be attached to.
    #[error("{}", .0.join("\n"))]
    Refused(Vec<String>),
    /// Maps without the places in them.
    #[error(
        "the maps pinned in {pins} are in use, but the state directory {state} does not say for what: use the state directory that they were made with, or remove them by `weir detach --all`"
    )]
    Orphans {
        /// The pins.
        pins: PathBuf,
        /// The state directory.
        state: PathBuf,
    },
    /// Signals can't be waited for.
    #[error("waiting for signals")]
    Signals(#[source] std::io::Error),
}

/// Runs the daemon with a configuration file until it is told to stop.
pub async fn run(path: &Path) -> Result<(), StartError> {
    let config = Config::load(path)?;
    dataplane::probe()?;
    let directory = Rc::new(Directory::open(&config.paths.state)?);
    let overrides = directory.overrides()?;
    let lists = directory.lists()?;
    let mut slots = directory.slots()?;
    let mut socket = Socket::bind(&config.paths.socket)?;
    let signals = |error| StartError::Signals(error);
    let hangup = signal(SignalKind::hangup()).map_err(signals)?;
    let terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let interrupt = signal(SignalKind::interrupt()).map_err(signals)?;

    if slots.is_none() && !Pins::new(&config.paths.pins).exist() {
        // Maps without the places in them are refused, and maps are there as soon as they are
        // loaded: whatever happens then, these are known to be ours.
        let none = Slots::default();
        directory.set_slots(&none)?;
        slots = Some(none);
    }
    let kernel = dataplane::load(&Settings {
        pin_dir: config.paths.pins.clone(),
        limits: config.desired.limits,
        hash_key: directory.secret()?,
    })?;
    let adopted = kernel.adopted();
    let Some(slots) = slots else {
        return Err(StartError::Orphans {
            pins: config.paths.pins,
            state: config.paths.state,
        });
    };
    let store = {
        let directory = directory.clone();
        Box::new(move |slots: &_| directory.set_slots(slots))
    };
    let limits = config.desired.limits;
    let engine = Engine::new(kernel, slots, limits, store, Instant::now())?;

    let (health_sender, health) = mpsc::channel(QUEUE);
    let (network_sender, network) = mpsc::channel(QUEUE);
    let (request_sender, requests) = mpsc::channel(QUEUE);
    let mut daemon = Daemon {
        config_path: path.into(),
        paths: config.paths.clone(),
        file: Desired {
            limits,
            ..Desired::default()
        },
        overrides,
        lists,
        ineffective: Vec::new(),
        directory,
        engine,
        checker: Checker::new(health_sender),
        resolver: Resolver::spawn(network_sender).await?,
        interfaces: BTreeMap::new(),
        host_warnings: BTreeSet::new(),
    };
    if let Err(error) = daemon.declare(config.desired, daemon.overrides.clone()) {
        if !adopted {
            // Nothing was there before; leave nothing behind.
            let _ = Pins::new(&config.paths.pins).remove_all();
        }
        return Err(StartError::Refused(error.reasons()));
    }

    if let Some(listener) = socket.listener.take() {
        let router = api::router(request_sender);
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                warn!(%error, "the API has ended");
            }
        });
    }
    info!(
        pid = std::process::id(),
        socket = %config.paths.socket.display(),
        "weir {} is ready", env!("CARGO_PKG_VERSION")
    );
    // Without systemd there is nobody to tell.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let sources = Sources {
        requests,
        health,
        network,
        hangup,
        terminate,
        interrupt,
    };
    daemon.run(sources).await;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    drop(socket);
    Ok(())
}
