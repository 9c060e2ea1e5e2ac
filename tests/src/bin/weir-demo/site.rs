use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Child;
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use lb_tests::lan::{Host, Lan};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::load::DOWNLOAD;

/// The service's address.
pub const VIP: &str = "198.18.9.10";

/// The web server, where `cargo xtask setup` puts it.
const NGINX: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/nginx/nginx");

/// The client network, the balancer's host and the VMs.
pub struct Site {
    /// Where requests come from.
    pub client: Host,
    /// Where weir runs.
    pub balancer: Host,
    /// The VMs.
    pub vms: Vec<Vm>,
    _lan: Lan,
}

/// A VM with nginx.
pub struct Vm {
    /// Its place on the network.
    pub host: Host,
    directory: TempDir,
    nginx: Mutex<Option<Child>>,
}

impl Site {
    /// Makes it all.
    pub fn new() -> Result<Self> {
        let lan = Lan::new();
        let client = lan.host("client", 1);
        let balancer = lan.host("balancer", 2);
        client.route_vip(VIP, &balancer);
        let mut vms = Vec::new();
        for number in 1..=3 {
            let host = lan.host(&format!("vm{number}"), 10 + number);
            host.serve_vip(VIP);
            let vm = Vm {
                host,
                directory: tempfile::tempdir().context("a directory for nginx")?,
                nginx: Mutex::new(None),
            };
            configure(vm.directory.path(), number)?;
            vm.boot()?;
            vms.push(vm);
        }
        Ok(Self {
            client,
            balancer,
            vms,
            _lan: lan,
        })
    }
}

/// Every answer says who it is from: `/` is the name alone, `/big` a file full of its number.
fn configure(directory: &Path, number: u8) -> Result<()> {
    let root = directory.display();
    let config = format!(
        "daemon off; pid {root}/pid; error_log {root}/error.log; worker_processes 1;\n\
         user root;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;\n\
           fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;\n\
           server {{ listen 80; root {root};\n\
             location = / {{ return 200 \"vm{number}\\n\"; }}\n\
             location = /big {{ limit_rate {rate}; }}\n\
           }}\n\
         }}\n",
        rate = DOWNLOAD / 6,
    );
    std::fs::write(directory.join("nginx.conf"), config)?;
    std::fs::write(directory.join("big"), vec![b'0' + number; DOWNLOAD])?;
    Ok(())
}

impl Vm {
    /// Starts its web server.
    pub fn boot(&self) -> Result<()> {
        self.host.netns.ip("link set eth up");
        let mut command = self.host.netns.command(NGINX);
        // What goes wrong before the configuration is read goes there too.
        command
            .arg("-e")
            .arg(self.directory.path().join("error.log"))
            .arg("-c")
            .arg(self.directory.path().join("nginx.conf"));
        command.arg("-p").arg(self.directory.path());
        let child = command.process_group(0).spawn().context("starting nginx")?;
        *self.nginx.lock().expect("no thread panicked with it") = Some(child);
        Ok(())
    }

    /// Cuts its power: nobody says goodbye.
    pub fn kill(&self) {
        self.host.netns.ip("link set eth down");
        let child = self
            .nginx
            .lock()
            .expect("no thread panicked with it")
            .take();
        if let Some(mut child) = child {
            // Master and worker are a process group: one alone would outlive the other.
            let group = i32::try_from(child.id()).map(Pid::from_raw);
            group
                .map(|group| killpg(group, Signal::SIGKILL))
                .expect("a process number")
                .expect("nginx to be there to be killed");
            child.wait().expect("nginx's end");
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.kill();
    }
}
