//! A real VM: QEMU with Debian's kernel, whose own tunnels unwrap what the balancer wraps.
//!
//! Emulated (TCG) also where KVM is: a nested KVM may not boot a stock kernel, and one second more
//! costs nothing here.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use tempfile::TempDir;

use crate::lan::Lan;
use crate::netns::{Netns, must};

/// The guest's first program. `@ADDRESS@`, `@GATEWAY@`, `@VIPS@` and `@MORE@` are filled in.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko; done
while [ ! -e /sys/class/net/eth0 ]; do sleep 0.1; done
for key in all/arp_ignore=1 all/arp_announce=2 all/rp_filter=0 default/rp_filter=0 tunl0/rp_filter=0; do
  echo ${key#*=} > /proc/sys/net/ipv4/conf/${key%=*}
done
/sbin/ip link set lo up
/sbin/ip link set eth0 up
/sbin/ip addr add @ADDRESS@/24 dev eth0
for gateway in @GATEWAY@; do /sbin/ip route add default via $gateway; done
for vip in @VIPS@; do /sbin/ip addr add $vip/32 dev lo; done
# IPIP in, and GUE in, which hands its packets on to IPIP.
/sbin/ip link set tunl0 up
/sbin/ip fou add port 6080 gue
mkdir -p /www/cgi-bin
echo vm > /www/index.html
cat > /www/cgi-bin/unwrapped <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
cat /sys/class/net/tunl0/statistics/rx_packets
END
chmod +x /www/cgi-bin/unwrapped
httpd -p 80 -h /www
@MORE@
echo "the guest is ready"
while true; do sleep 1000; done
"#;

/// A VM, until it is dropped.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    directory: TempDir,
    address: String,
}

/// Returns where `cargo xtask setup` puts the guest's kernel.
fn guest() -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guest");
    assert!(
        directory.join("modules/order").exists(),
        "there is no guest kernel: run the tests by `cargo xtask test`, which fetches it"
    );
    directory
}

/// What a VM has and does besides serving.
#[derive(Clone, Copy, Debug, Default)]
pub struct More<'a> {
    /// Programs of the host, copied into its `/bin` with their libraries.
    pub programs: &'a [&'a Path],
    /// Files by path, with their content.
    pub files: &'a [(&'a str, &'a str)],
    /// Commands of its shell, when it serves.
    pub commands: &'a str,
}

/// Where a VM's NIC ends.
#[derive(Clone, Copy, Debug)]
pub struct Port<'a> {
    /// The namespace that the tap is in.
    pub netns: &'a Netns,
    /// The tap.
    pub tap: &'a str,
    /// The guest's gateway, if it needs one.
    pub gateway: Option<&'a str>,
}

impl Vm {
    /// Boots a VM on a network, at 198.18.0.`number`, which answers for `vips` by HTTP.
    pub fn boot(lan: &Lan, number: u8, vips: &[&str]) -> Self {
        let port = Port {
            netns: lan.switch(),
            tap: &lan.tap(number),
            gateway: None,
        };
        let address = format!("198.18.0.{number}");
        Self::boot_at(&port, &address, number, vips, &More::default())
    }

    /// Boots a VM on a tap that is there, with the address `address`/24.
    pub fn boot_at(
        port: &Port<'_>,
        address: &str,
        number: u8,
        vips: &[&str],
        more: &More<'_>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let script = INIT
            .replace("@ADDRESS@", address)
            .replace("@GATEWAY@", port.gateway.unwrap_or_default())
            .replace("@VIPS@", &vips.join(" "))
            .replace("@MORE@", more.commands);
        let image = image(directory.path(), &script, more);
        let tap = port.tap;
        let mut qemu = port.netns.command("qemu-system-x86_64");
        qemu.args([
            "-M",
            "q35",
            "-accel",
            "tcg,tb-size=64",
            "-cpu",
            "qemu64",
            "-m",
            "256",
        ]);
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        qemu.arg("-kernel")
            .arg(guest().join("vmlinuz"))
            .arg("-initrd")
            .arg(image);
        qemu.args(["-append", "console=ttyS0 panic=-1 quiet"]);
        qemu.arg("-serial").arg(format!(
            "file:{}",
            directory.path().join("console").display()
        ));
        qemu.arg("-netdev")
            .arg(format!("tap,id=n0,ifname={tap},script=no,downscript=no"));
        qemu.arg("-device").arg(format!(
            "virtio-net-pci,netdev=n0,mac=02:00:00:00:00:{number:02x},romfile="
        ));
        let child = qemu.spawn().expect("starting qemu");
        Self {
            child,
            directory,
            address: address.to_owned(),
        }
    }

    /// Returns its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Returns what it said.
    pub fn console(&self) -> String {
        fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes the guest's file system: busybox, the modules, Debian's `ip`, which knows GUE, and more.
fn image(directory: &Path, script: &str, more: &More<'_>) -> PathBuf {
    let root = directory.join("root");
    for name in ["bin", "sbin", "proc", "sys", "dev", "modules", "run", "tmp"] {
        fs::create_dir_all(root.join(name)).expect("a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
    for entry in fs::read_dir(guest().join("modules"))
        .expect("modules")
        .flatten()
    {
        fs::copy(entry.path(), root.join("modules").join(entry.file_name())).expect("a module");
    }
    let ip = ["/sbin/ip", "/bin/ip", "/usr/bin/ip"]
        .into_iter()
        .map(Path::new)
        .find(|ip| ip.exists());
    add_program(&root, ip.expect("iproute2"), "sbin");
    for program in more.programs {
        add_program(&root, program, "bin");
    }
    for (path, content) in more.files {
        fs::write(root.join(path.trim_start_matches('/')), content).expect("a file");
    }
    let init = root.join("init");
    fs::write(&init, script).expect("the guest's init");
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).expect("the guest's init");
    let image = directory.join("image");
    let pack = format!(
        "cd '{}' && find . | cpio --quiet -o -H newc > '{}'",
        root.display(),
        image.display()
    );
    must(Command::new("sh").args(["-c", &pack]));
    image
}

/// Adds a program of the host with its libraries, without symbols: a guest has little memory.
fn add_program(root: &Path, program: &Path, directory: &str) {
    let target = root
        .join(directory)
        .join(program.file_name().expect("a name"));
    must(
        Command::new("strip")
            .arg("-o")
            .args([&target, &program.to_path_buf()]),
    );
    let libraries = must(Command::new("ldd").arg(program)).stdout;
    for word in String::from_utf8_lossy(&libraries).split_whitespace() {
        let source = Path::new(word);
        if source.is_absolute() && source.exists() {
            let target = root.join(word.trim_start_matches('/'));
            fs::create_dir_all(target.parent().expect("a directory")).expect("a directory");
            fs::copy(source, target).expect("a library");
        }
    }
}
