#![expect(clippy::print_stdout, reason = "the commands' answers")]

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::arguments::{BackendCommand, Command, ServiceCommand};
use super::{guard, tables, watch};
use crate::api::{
    Audit, BackendPatch, Client, Diff, DiffRequest, Done, ExplainRequest, Explained, ServiceView,
    Stats,
};
use crate::config::Config;
use crate::spec::InterfaceSpec;

/// Checks a configuration file.
pub fn check(file: &Path) -> Result<ExitCode> {
    let config = Config::load(file)?;
    let services = config.desired.services.values();
    let backends: usize = services.map(|service| service.backends.len()).sum();
    println!(
        "{}: valid; {} interfaces, {} services, {backends} backends",
        file.display(),
        config.desired.interfaces.len(),
        config.desired.services.len(),
    );
    Ok(ExitCode::SUCCESS)
}

/// Carries out a command by asking the daemon.
pub async fn run(client: &Client, command: Command, json: bool) -> Result<ExitCode> {
    let output = Output { client, json };
    match command {
        // These need no daemon, and never come here.
        Command::Run { .. } | Command::Check { .. } | Command::Decap(_) => {}
        Command::Status => {
            output
                .show(Method::GET, "/v1/status", tables::status)
                .await?;
        }
        Command::Stats { watch: true, count } => watch::run(client, json, count).await?,
        Command::Stats { watch: false, .. } => {
            let table = |stats: &Stats| tables::stats(stats, None);
            output.show(Method::GET, "/v1/stats", table).await?;
        }
        Command::Reload => output.done(Method::POST, "/v1/reload", &()).await?,
        Command::Diff { file } => {
            let toml = std::fs::read_to_string(&file);
            let request = DiffRequest {
                toml: toml.with_context(|| file.display().to_string())?,
                file: file.display().to_string(),
            };
            let diff: Diff = client.send_json(Method::POST, "/v1/diff", &request).await?;
            output.print(&diff, tables::diff)?;
        }
        Command::Explain {
            source,
            destination,
            protocol,
            syn,
        } => {
            let request = ExplainRequest {
                source,
                destination,
                protocol,
                syn,
            };
            let explained: Explained = client
                .send_json(Method::POST, "/v1/explain", &request)
                .await?;
            output.print(&explained, tables::explained)?;
        }
        Command::Audit => {
            let audit: Audit = client.send(Method::GET, "/v1/audit").await?;
            output.print(&audit, tables::audit)?;
            if !audit.differences.is_empty() {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Attach { interface, mode } => {
            let spec = InterfaceSpec {
                name: interface,
                mode,
            };
            output.done(Method::POST, "/v1/interfaces", &spec).await?;
        }
        Command::Detach { interface, .. } => {
            let path = format!("/v1/interfaces/{}", segment(&interface.unwrap_or_default()));
            output.done(Method::DELETE, &path, &()).await?;
        }
        Command::Guard(command) => guard::run(&output, command).await?,
        Command::Service(command) => service(&output, command).await?,
        Command::Backend(command) => backend(&output, command).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn service(output: &Output<'_>, command: ServiceCommand) -> Result<()> {
    match command {
        ServiceCommand::List => {
            let table = |services: &Vec<ServiceView>| tables::services(services);
            output.show(Method::GET, "/v1/services", table).await
        }
        ServiceCommand::Show { service } => {
            let path = format!("/v1/services/{}", segment(&service));
            output.show(Method::GET, &path, tables::service).await
        }
        ServiceCommand::Add(arguments) => {
            let spec = arguments.spec()?;
            output.done(Method::POST, "/v1/services", &spec).await
        }
        ServiceCommand::Remove { service } => {
            let path = format!("/v1/services/{}", segment(&service));
            output.done(Method::DELETE, &path, &()).await
        }
    }
}

async fn backend(output: &Output<'_>, command: BackendCommand) -> Result<()> {
    let path = |service: &str, backend: &str| {
        format!(
            "/v1/services/{}/backends/{}",
            segment(service),
            segment(backend)
        )
    };
    let patch = |weight, draining| BackendPatch { weight, draining };
    match command {
        BackendCommand::List { service } => {
            let path = format!("/v1/services/{}", segment(&service));
            let service: ServiceView = output.client.send(Method::GET, &path).await?;
            output.print(&service.backends, |backends| tables::backends(backends))
        }
        BackendCommand::Add(arguments) => {
            let path = format!("/v1/services/{}/backends", segment(&arguments.service));
            output.done(Method::POST, &path, &arguments.spec()?).await
        }
        BackendCommand::Remove {
            service,
            backend,
            drop_flows,
        } => {
            let query = if drop_flows { "?drop_flows=true" } else { "" };
            let path = path(&service, &backend) + query;
            output.done(Method::DELETE, &path, &()).await
        }
        BackendCommand::SetWeight {
            service,
            backend,
            weight,
        } => {
            let patch = patch(Some(weight), None);
            output
                .done(Method::PATCH, &path(&service, &backend), &patch)
                .await
        }
        BackendCommand::Drain { service, backend } => {
            let patch = patch(None, Some(true));
            output
                .done(Method::PATCH, &path(&service, &backend), &patch)
                .await
        }
        BackendCommand::Undrain { service, backend } => {
            let patch = patch(None, Some(false));
            output
                .done(Method::PATCH, &path(&service, &backend), &patch)
                .await
        }
    }
}

/// Where answers come from, and how they are printed.
pub(super) struct Output<'a> {
    pub(super) client: &'a Client,
    json: bool,
}

impl Output<'_> {
    pub(super) async fn show<T: Serialize + DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        table: impl Fn(&T) -> String,
    ) -> Result<()> {
        let value: T = self.client.send(method, path).await?;
        self.print(&value, table)
    }

    pub(super) async fn done(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<()> {
        let done: Done = self.client.send_json(method, path, body).await?;
        self.print(&done, tables::done)
    }

    pub(super) fn print<T: Serialize>(
        &self,
        value: &T,
        table: impl Fn(&T) -> String,
    ) -> Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(value)?);
        } else {
            println!("{}", table(value));
        }
        Ok(())
    }
}

/// Writes a name as a segment of a path (RFC 3986 §2.1).
fn segment(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text += &format!("%{byte:02X}");
        }
    }
    text
}
