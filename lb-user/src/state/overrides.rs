use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::model::{Backend, BackendId, Desired, Name, Service, Weight};
use crate::spec::{BackendSpec, InterfaceSpec, ServiceSpec, clashes};

const VERSION: u32 = 1;

/// Why a change names something that isn't there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotThere(pub String);

/// The operator's own changes over the configuration file. What the file says already needs none,
/// and a change of something that the file doesn't have at the moment is kept for when it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    version: u32,
    #[serde(default)]
    services: BTreeMap<String, ServiceOverride>,
    /// Attached interfaces; nothing for one that is detached.
    #[serde(default)]
    interfaces: BTreeMap<String, Option<InterfaceSpec>>,
}

/// Changes of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceOverride {
    /// The service, if it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    added: Option<ServiceSpec>,
    /// Whether it was removed.
    #[serde(default, skip_serializing_if = "is_false")]
    removed: bool,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    backends: BTreeMap<String, BackendOverride>,
}

/// Changes of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendOverride {
    /// The backend, if it was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    added: Option<BackendSpec>,
    /// Whether it was removed.
    #[serde(default, skip_serializing_if = "is_false")]
    removed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    draining: Option<bool>,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl Default for Overrides {
    fn default() -> Self {
        Self {
            version: VERSION,
            services: BTreeMap::new(),
            interfaces: BTreeMap::new(),
        }
    }
}

impl Overrides {
    pub(super) fn check(&self) -> Result<(), String> {
        match self.version {
            VERSION => Ok(()),
            other => Err(format!("version {other}, this weir knows {VERSION}")),
        }
    }

    /// Returns what the file and these changes declare together, and a line for each change that
    /// has no effect. The file wins where both declare the same.
    pub fn apply(&self, file: &Desired) -> (Desired, Vec<String>) {
        let mut desired = file.clone();
        let mut idle = Vec::new();
        for (name, interface) in &self.interfaces {
            match interface.as_ref().map(InterfaceSpec::to_model) {
                Some(Ok((name, interface))) => {
                    desired.interfaces.insert(name, interface);
                }
                Some(Err(_)) => idle.push(format!("interface \"{name}\": not valid")),
                None => {
                    desired.interfaces.remove(name);
                }
            }
        }
        let mut services = Vec::new();
        for (name, change) in &self.services {
            match name.parse::<Name>() {
                Ok(name) => services.push((name, change)),
                Err(_) => idle.push(format!("service \"{name}\": not a name")),
            }
        }
        // First all that goes, so that a VIP is free for another service whatever their names.
        let mut added = Vec::new();
        for (name, change) in &services {
            added.extend(change.make_room(name, &mut desired, &mut idle));
        }
        let mut refused = Vec::new();
        for service in added {
            let others = desired.services.values();
            match clashes(others.chain([&service])).into_iter().next() {
                None => {
                    desired.services.insert(service.name.clone(), service);
                }
                Some((_, error)) => {
                    idle.push(error.to_string());
                    refused.push(service.name);
                }
            }
        }
        for name in &refused {
            // What the file says of it counts again, if there is still room.
            let of_file = file.services.get(name).cloned();
            let others = desired.services.values();
            if let Some(service) = of_file.filter(|s| clashes(others.chain([s])).is_empty()) {
                desired.services.insert(name.clone(), service);
            }
        }
        for (name, change) in &services {
            if !refused.contains(name) {
                change.change_backends(name, &mut desired, &mut idle);
            }
        }
        (desired, idle)
    }

    /// Returns one line for each change.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, interface) in &self.interfaces {
            let verb = if interface.is_some() {
                "attached"
            } else {
                "detached"
            };
            lines.push(format!("interface \"{name}\" {verb}"));
        }
        for (name, service) in &self.services {
            if service.added.is_some() {
                lines.push(format!("service \"{name}\" added"));
            } else if service.removed {
                lines.push(format!("service \"{name}\" removed"));
            }
            for (backend, change) in &service.backends {
                let path = format!("service \"{name}\", backend \"{backend}\"");
                if change.added.is_some() {
                    lines.push(format!("{path} added"));
                } else if change.removed {
                    lines.push(format!("{path} removed"));
                }
                if let Some(weight) = change.weight {
                    lines.push(format!("{path}, weight: {weight}"));
                }
                if let Some(draining) = change.draining {
                    lines.push(format!("{path}, draining: {draining}"));
                }
            }
        }
        lines
    }

    /// Adds or replaces a service.
    pub fn add_service(&mut self, file: &Desired, spec: &ServiceSpec, service: &Service) {
        if file.services.get(&service.name) == Some(service) {
            self.services.remove(service.name.as_str());
            return;
        }
        let change = ServiceOverride {
            added: Some(spec.clone()),
            ..ServiceOverride::default()
        };
        self.services.insert(service.name.to_string(), change);
    }

    /// Removes a service.
    pub fn remove_service(&mut self, file: &Desired, name: &Name) {
        self.services.remove(name.as_str());
        if file.services.contains_key(name) {
            let change = ServiceOverride {
                removed: true,
                ..ServiceOverride::default()
            };
            self.services.insert(name.to_string(), change);
        }
    }

    /// Adds or replaces a backend.
    pub fn add_backend(
        &mut self,
        file: &Desired,
        service: &Name,
        spec: &BackendSpec,
        backend: &Backend,
    ) {
        let name = spec.name.parse().ok();
        let of_file = name.and_then(|name| self.backend_of_file(file, service, &name));
        let change = BackendOverride {
            added: (of_file.as_ref() != Some(backend)).then(|| spec.clone()),
            ..BackendOverride::default()
        };
        self.set_backend(service, &spec.name, change);
    }

    /// Removes a backend.
    pub fn remove_backend(&mut self, file: &Desired, id: &BackendId) {
        let change = BackendOverride {
            removed: self
                .backend_of_file(file, &id.service, &id.backend)
                .is_some(),
            ..BackendOverride::default()
        };
        self.set_backend(&id.service, id.backend.as_str(), change);
    }

    /// Sets a weight.
    pub fn set_weight(&mut self, file: &Desired, id: &BackendId, weight: Weight) {
        let declared = self.declared(file, id).map(|backend| backend.weight);
        let weight = (declared != Some(weight)).then_some(weight.get());
        self.change_backend(id, |change| change.weight = weight);
    }

    /// Drains a backend or ends that.
    pub fn set_draining(&mut self, file: &Desired, id: &BackendId, draining: bool) {
        let declared = self.declared(file, id).map(|backend| backend.draining);
        let draining = (declared != Some(draining)).then_some(draining);
        self.change_backend(id, |change| change.draining = draining);
    }

    /// Attaches an interface.
    pub fn attach(&mut self, file: &Desired, spec: &InterfaceSpec) {
        let same = spec
            .to_model()
            .is_ok_and(|(name, interface)| file.interfaces.get(&name) == Some(&interface));
        if same {
            self.interfaces.remove(&spec.name);
        } else {
            self.interfaces
                .insert(spec.name.clone(), Some(spec.clone()));
        }
    }

    /// Detaches an interface.
    pub fn detach(&mut self, file: &Desired, name: &str) {
        self.interfaces.remove(name);
        if file.interfaces.contains_key(name) {
            self.interfaces.insert(name.to_owned(), None);
        }
    }

    /// Returns the backend without the changes of its weight and draining.
    fn declared(&self, file: &Desired, id: &BackendId) -> Option<Backend> {
        let added = self
            .services
            .get(id.service.as_str())
            .and_then(|service| service.backends.get(id.backend.as_str()))
            .and_then(|change| change.added.as_ref());
        match added {
            Some(spec) => {
                let service = self.apply(file).0.services.remove(&id.service)?;
                spec.to_model(&service).ok().map(|(_, backend)| backend)
            }
            None => self.backend_of_file(file, &id.service, &id.backend),
        }
    }

    /// Returns the backend as the file has it, or the service that was added instead.
    fn backend_of_file(&self, file: &Desired, service: &Name, backend: &Name) -> Option<Backend> {
        let added = self
            .services
            .get(service.as_str())
            .and_then(|change| change.added.as_ref());
        match added {
            Some(spec) => spec.to_model().ok()?.backends.remove(backend),
            None => file.services.get(service)?.backends.get(backend).cloned(),
        }
    }

    fn set_backend(&mut self, service: &Name, backend: &str, change: BackendOverride) {
        let entry = self.services.entry(service.to_string()).or_default();
        entry.backends.insert(backend.to_owned(), change);
        self.prune();
    }

    fn change_backend(&mut self, id: &BackendId, change: impl FnOnce(&mut BackendOverride)) {
        let service = self.services.entry(id.service.to_string()).or_default();
        change(service.backends.entry(id.backend.to_string()).or_default());
        self.prune();
    }

    /// Forgets changes that change nothing.
    fn prune(&mut self) {
        for service in self.services.values_mut() {
            service
                .backends
                .retain(|_, change| *change != BackendOverride::default());
        }
        self.services
            .retain(|_, change| *change != ServiceOverride::default());
    }
}

impl ServiceOverride {
    /// Takes out what is removed or replaced. Returns the service that is added.
    fn make_room(
        &self,
        name: &Name,
        desired: &mut Desired,
        idle: &mut Vec<String>,
    ) -> Option<Service> {
        if self.removed && desired.services.remove(name).is_none() {
            idle.push(format!("service \"{name}\" removed: it is not in the file"));
        }
        match self.added.as_ref()?.to_model() {
            Ok(service) => {
                desired.services.remove(name);
                Some(service)
            }
            Err(errors) => {
                idle.extend(errors.iter().map(ToString::to_string));
                None
            }
        }
    }

    fn change_backends(&self, name: &Name, desired: &mut Desired, idle: &mut Vec<String>) {
        let Some(service) = desired.services.get_mut(name) else {
            if !self.backends.is_empty() {
                idle.push(format!(
                    "service \"{name}\", changed backends: there is no such service"
                ));
            }
            return;
        };
        for (backend, change) in &self.backends {
            if let Err(reason) = change.apply(backend, service) {
                idle.push(format!(
                    "service \"{name}\", backend \"{backend}\": {reason}"
                ));
            }
        }
    }
}

impl BackendOverride {
    fn apply(&self, name: &str, service: &mut Service) -> Result<(), String> {
        let name: Name = name.parse().map_err(|error| format!("{error}"))?;
        if self.removed && service.backends.remove(&name).is_none() {
            return Err("removed, but it is not in the file".to_owned());
        }
        if let Some(spec) = &self.added {
            let (name, backend) = spec.to_model(service).map_err(|errors| {
                let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                errors.join("; ")
            })?;
            service.backends.insert(name, backend);
        }
        if self.weight.is_none() && self.draining.is_none() {
            return Ok(());
        }
        let backend = service
            .backends
            .get_mut(&name)
            .ok_or("changed, but it is not in the file")?;
        if let Some(weight) = self.weight {
            backend.weight = Weight::new(weight);
        }
        if let Some(draining) = self.draining {
            backend.draining = draining;
        }
        Ok(())
    }
}
