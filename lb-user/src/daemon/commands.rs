use std::time::Instant;

use serde::Serialize;

use super::Daemon;
use crate::api::{
    Audit, BackendPatch, Command, Diff, DiffRequest, Done, Error, Moves, RemoveBackend, Reply,
};
use crate::config::{self, Config, Paths};
use crate::dataplane::AttachError;
use crate::engine::EngineError;
use crate::model::{Backend, BackendId, Desired, ListKind, Name, Service, Weight};
use crate::spec::{BackendSpec, Checker, InterfaceSpec, ServiceSpec, SpecError, clashes};

impl Daemon {
    /// Carries a command out, or refuses it and changes nothing.
    pub(super) fn command(&mut self, command: Command) -> Reply {
        match command {
            Command::Status => json(&self.status().map_err(internal)?),
            Command::Stats => json(&self.stats().map_err(internal)?),
            Command::Audit => json(&self.audit()?),
            Command::Explain(request) => json(&self.explain(&request)?),
            Command::Diff(request) => json(&self.diff(&request)?),
            Command::Guard => json(&self.guard_view()),
            Command::GuardTest(request) => json(&self.guard_test(&request)?),
            Command::LoadList(request) => done(self.load_list(&request)?),
            Command::ResetList(request) => done(self.reset_list(&request)?),
            Command::Reload => done(self.reload()?),
            Command::AddService(spec) => done(self.add_service(&spec)?),
            Command::RemoveService(name) => done(self.remove_service(&name)?),
            Command::AddBackend(service, spec) => done(self.add_backend(&service, &spec)?),
            Command::PatchBackend(id, patch) => done(self.patch_backend(&id, &patch)?),
            Command::RemoveBackend(id, how) => done(self.remove_backend(&id, &how)?),
            Command::Attach(spec) => done(self.attach_command(&spec)?),
            Command::Detach(name) => done(self.detach_command(&name)?),
        }
    }

    fn audit(&self) -> Result<Audit, Error> {
        let (differences, entries) = self.engine.audit().map_err(internal)?;
        Ok(Audit {
            entries: entries as u64,
            differences: differences.iter().map(ToString::to_string).collect(),
        })
    }

    fn diff(&self, request: &DiffRequest) -> Result<Diff, Error> {
        let config = Config::parse(&request.toml, &request.file).map_err(|error| {
            Error::Invalid(error.to_string().lines().map(str::to_owned).collect())
        })?;
        // What a reload would refuse is refused in its words, as far as that can be known.
        let mut refused = self.changed_paths(&config.paths);
        let (mut desired, _) = self.overrides.apply(&config.desired);
        self.lists.apply(&mut desired);
        if let Err(error) = self.engine.prepare(desired.clone()) {
            refused.push(error.to_string());
        }
        refused.extend(self.missing_interfaces(&desired));
        if !refused.is_empty() {
            return Err(Error::Conflict(refused));
        }
        let changes = config::diff(self.engine.desired(), &desired);
        let moves = self.engine.diff(&desired);
        Ok(Diff {
            changes: changes.iter().map(ToString::to_string).collect(),
            moves: moves
                .into_iter()
                .map(|diff| Moves {
                    service: diff.service.to_string(),
                    moved_rows: diff.moved as u64,
                    rows: diff.rows as u64,
                })
                .collect(),
        })
    }

    fn changed_paths(&self, paths: &Paths) -> Vec<String> {
        let fields = [
            ("state", &self.paths.state, &paths.state),
            ("socket", &self.paths.socket, &paths.socket),
            ("pins", &self.paths.pins, &paths.pins),
        ];
        let changed = fields.into_iter().filter(|(_, old, new)| old != new);
        changed
            .map(|(field, old, new)| {
                let (old, new) = (old.display(), new.display());
                format!("paths.{field}: {old} -> {new}: paths can't change while weir runs: stop it and start it again")
            })
            .collect()
    }

    /// Returns why interfaces that are newly declared can't be attached to.
    fn missing_interfaces(&self, desired: &Desired) -> Vec<String> {
        let current = &self.engine.desired().interfaces;
        let missing = desired.interfaces.keys().filter(|name| {
            !current.contains_key(*name) && nix::net::if_::if_nametoindex(name.as_str()).is_err()
        });
        missing
            .map(|name| AttachError::NoInterface(name.clone()).to_string())
            .collect()
    }

    fn add_service(&mut self, spec: &ServiceSpec) -> Result<Vec<String>, Error> {
        let service = spec.to_model().map_err(invalid)?;
        let services = &self.engine.desired().services;
        if services.contains_key(&service.name) {
            let reason = format!("service \"{}\": there is one already", service.name);
            return Err(Error::Conflict(vec![reason]));
        }
        let clashes = clashes(services.values().chain([&service]));
        if !clashes.is_empty() {
            let reasons = clashes.iter().map(|(_, error)| error.to_string());
            return Err(Error::Conflict(reasons.collect()));
        }
        let mut overrides = self.overrides.clone();
        overrides.add_service(&self.file, spec, &service);
        self.declare(self.file.clone(), overrides)
    }

    fn remove_service(&mut self, name: &Name) -> Result<Vec<String>, Error> {
        self.service(name)?;
        let mut overrides = self.overrides.clone();
        overrides.remove_service(&self.file, name);
        let mut lists = self.lists.clone();
        for kind in ListKind::ALL {
            lists.set((Some(name.clone()), kind), None);
        }
        self.declare_all(self.file.clone(), overrides, lists)
    }

    fn add_backend(&mut self, service: &Name, spec: &BackendSpec) -> Result<Vec<String>, Error> {
        let declared = self.service(service)?;
        let (name, backend) = spec.to_model(declared).map_err(invalid)?;
        if declared.backends.contains_key(&name) {
            let reason = format!("service \"{service}\", backend \"{name}\": there is one already");
            return Err(Error::Conflict(vec![reason]));
        }
        let mut overrides = self.overrides.clone();
        overrides.add_backend(&self.file, service, spec, &backend);
        self.declare(self.file.clone(), overrides)
    }

    fn patch_backend(
        &mut self,
        id: &BackendId,
        patch: &BackendPatch,
    ) -> Result<Vec<String>, Error> {
        self.backend(id)?;
        let path = format!("service \"{}\", backend \"{}\"", id.service, id.backend);
        let mut check = Checker::new(path);
        let weight = patch
            .weight
            .map(|weight| check.number("weight", weight, 0..=u16::MAX));
        check.finish(Some(())).map_err(invalid)?;
        let mut overrides = self.overrides.clone();
        if let Some(weight) = weight.flatten() {
            overrides.set_weight(&self.file, id, Weight::new(weight));
        }
        if let Some(draining) = patch.draining {
            overrides.set_draining(&self.file, id, draining);
        }
        self.declare(self.file.clone(), overrides)
    }

    fn remove_backend(
        &mut self,
        id: &BackendId,
        how: &RemoveBackend,
    ) -> Result<Vec<String>, Error> {
        self.backend(id)?;
        let mut overrides = self.overrides.clone();
        overrides.remove_backend(&self.file, id);
        let changes = self.declare(self.file.clone(), overrides)?;
        if how.drop_flows {
            self.engine.give_up(id, Instant::now());
            self.reconcile();
        }
        Ok(changes)
    }

    fn attach_command(&mut self, spec: &InterfaceSpec) -> Result<Vec<String>, Error> {
        let (name, wanted) = spec.to_model().map_err(invalid)?;
        let declared = self.engine.desired().interfaces.get(&name).cloned();
        let same = declared.filter(|declared| spec.mode.is_none() || wanted == *declared);
        if let Some(declared) = same {
            if self.interfaces.get(&name).is_some_and(Result::is_ok) {
                let reason = format!("interface \"{name}\" is attached already");
                return Err(Error::Conflict(vec![reason]));
            }
            // It is wanted, and could not be attached so far.
            let result = self.attach(&name, &declared);
            result.map_err(|reason| Error::Conflict(vec![reason]))?;
            return Ok(vec![format!("interface \"{name}\" attached")]);
        }
        let mut overrides = self.overrides.clone();
        overrides.attach(&self.file, spec);
        self.declare(self.file.clone(), overrides)
    }

    fn detach_command(&mut self, name: &str) -> Result<Vec<String>, Error> {
        if !self.engine.desired().interfaces.contains_key(name) {
            let reason = format!("interface \"{name}\" is not attached");
            return Err(Error::NotFound(reason));
        }
        let mut overrides = self.overrides.clone();
        overrides.detach(&self.file, name);
        self.declare(self.file.clone(), overrides)
    }

    pub(super) fn service(&self, name: &Name) -> Result<&Service, Error> {
        let service = self.engine.desired().services.get(name);
        service.ok_or_else(|| Error::NotFound(format!("there is no service \"{name}\"")))
    }

    fn backend(&self, id: &BackendId) -> Result<&Backend, Error> {
        let backend = self.service(&id.service)?.backends.get(&id.backend);
        backend.ok_or_else(|| {
            let (service, backend) = (&id.service, &id.backend);
            Error::NotFound(format!(
                "service \"{service}\" has no backend \"{backend}\""
            ))
        })
    }
}

fn json(value: &impl Serialize) -> Reply {
    serde_json::to_value(value).map_err(|error| Error::Internal(error.to_string()))
}

fn done(changes: Vec<String>) -> Reply {
    json(&Done { done: changes })
}

fn internal(error: EngineError) -> Error {
    Error::Internal(format!("{:#}", anyhow::Error::from(error)))
}

pub(super) fn invalid(errors: Vec<SpecError>) -> Error {
    Error::Invalid(errors.iter().map(ToString::to_string).collect())
}
