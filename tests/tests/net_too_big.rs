//! Path MTU discovery towards a virtual address: links are 1500 bytes wide everywhere, tunnels take
//! some of that, and real clients learn it.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use lb_tests::decap::Decap;
use lb_tests::lan::{Host, Lan};
use lb_tests::netns::Netns;
use lb_tests::server::Server;
use lb_tests::weir::Weir;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";
const PATIENCE: Duration = Duration::from_secs(10);
/// More than a path's first packets carry.
const UPLOAD: usize = 300_000;

/// A server that reads until the end, and says how much that was.
fn sink(vm: &Netns, port: u16, connections: usize) -> std::thread::JoinHandle<()> {
    let listener = vm.enter(|| {
        let any = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
        TcpListener::bind(any).expect("a port")
    });
    listener.set_nonblocking(true).expect("a listener");
    std::thread::spawn(move || {
        let until = Instant::now() + 6 * PATIENCE;
        let mut served = 0;
        while served < connections && Instant::now() < until {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            served += 1;
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_read_timeout(Some(PATIENCE));
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes);
            let _ = stream.write_all(bytes.len().to_string().as_bytes());
        }
    })
}

/// Sends so much and returns how much the server says that it got.
fn upload(client: &Netns, to: &str, bytes: usize) -> io::Result<usize> {
    let to: SocketAddr = to.parse().unwrap();
    let mut stream = client.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&vec![7; bytes])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.parse().map_err(io::Error::other)
}

/// Sets a number of a socket.
fn set(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    // SAFETY: a pointer to an integer of that size.
    let result = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, name, value, 4)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Returns what the kernel thinks a connected socket's path MTU is.
fn path_mtu(socket: &UdpSocket, v4: bool) -> i32 {
    let (level, name) = if v4 {
        (libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let (mut value, mut len) = (0, 4);
    // SAFETY: pointers to an integer and to its size.
    let result = unsafe {
        let place = (&raw mut value).cast();
        libc::getsockopt(socket.as_raw_fd(), level, name, place, &raw mut len)
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    value
}

fn count(weir: &Weir<'_>, reason: &str) -> u64 {
    weir.json("stats")["reasons"][reason].as_u64().unwrap()
}

/// A client that never fragments learns how long its datagrams may be, and that length arrives.
fn datagrams(client: &Host, weir: &Weir<'_>, vip: &str, mtu: i32) {
    let v4 = !vip.contains(':');
    let to: SocketAddr = SocketAddr::new(vip.parse().unwrap(), 80);
    let any = if v4 { "0.0.0.0:0" } else { "[::]:0" };
    let socket = client.netns.enter(|| UdpSocket::bind(any)).unwrap();
    let (level, name) = if v4 {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER)
    } else {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER)
    };
    set(&socket, level, name, libc::IP_PMTUDISC_DO);
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(path_mtu(&socket, v4), 1500, "{vip}: nobody knows yet");
    let headers = if v4 { 28 } else { 48 };
    let before = count(weir, "too_big");
    let full = vec![b'x'; 1500 - headers];
    socket.send(&full).unwrap();
    let started = Instant::now();
    while path_mtu(&socket, v4) == 1500 {
        assert!(
            started.elapsed() < PATIENCE,
            "{vip}: nobody told\n{}",
            weir.log()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(path_mtu(&socket, v4), mtu, "{vip}");
    assert_eq!(count(weir, "too_big"), before + 1, "{vip}");
    // The kernel reports it once, and keeps to it.
    let _ = socket.take_error();
    let refused = socket.send(&full).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE), "{vip}");
    let fits = vec![b'x'; mtu as usize - headers];
    let mut answer = [0; 64];
    socket.send(&fits).unwrap();
    let len = socket.recv(&mut answer).expect("an answer");
    assert_eq!(&answer[..len], b"vm", "{vip}");
    assert_eq!(count(weir, "too_big"), before + 1, "{vip}");
}

#[test]
fn clients_learn_the_path_mtu_towards_a_vm_behind_a_tunnel() {
    for (forward, outer_v4, overhead) in [
        ("ipip", true, 20),
        ("ipip", false, 40),
        ("gue", true, 28),
        ("gue", false, 48),
    ] {
        let lan = Lan::new();
        let client = lan.host("client", 1);
        let balancer = lan.host("balancer", 2);
        let vm = lan.host("vm", 11);
        let address = if outer_v4 { vm.v4() } else { vm.v6() };
        let mut config = "[[interface]]\nname = \"eth\"\nmode = \"native\"\n".to_owned();
        for (number, vip) in [(4, VIP), (6, VIP6)] {
            client.route_vip(vip, &balancer);
            vm.serve_vip(vip);
            for (name, port, protocol) in [("dns", 80, "udp"), ("up", 81, "tcp")] {
                config += &format!(
                    "[[service]]\nname = \"{name}{number}\"\naddress = \"{vip}\"\nport = {port}\nprotocol = \"{protocol}\"\nforward = \"{forward}\"\n\
                     [[service.backend]]\nname = \"vm\"\naddress = \"{address}\"\n"
                );
            }
        }
        let _decap = Decap::attach(&vm);
        let _server = Server::start(&vm, 80, "vm");
        let sink = sink(&vm.netns, 81, 4);
        let weir = Weir::start(&balancer, &config);
        assert!(
            weir.log().is_empty() || !weir.log().contains("ERROR"),
            "{}",
            weir.log()
        );
        for name in ["dns4", "dns6", "up4", "up6"] {
            weir.wait_serving(name);
        }
        // A TCP client begins with full segments: the VM announces what its own link takes.
        for to in [format!("{VIP}:81"), format!("[{VIP6}]:81")] {
            let before = count(&weir, "too_big");
            let got = upload(&client.netns, &to, UPLOAD);
            let got =
                got.unwrap_or_else(|error| panic!("{to} by {forward}: {error}\n{}", weir.log()));
            assert_eq!(got, UPLOAD, "{to} by {forward}");
            assert!(count(&weir, "too_big") > before, "{to}: nobody was told");
            // It knows from now on.
            let before = count(&weir, "too_big");
            assert_eq!(upload(&client.netns, &to, UPLOAD).unwrap(), UPLOAD);
            assert_eq!(count(&weir, "too_big"), before, "{to}");
        }
        // What one socket learned the kernel knows for all.
        client.netns.ip("-4 route flush cache");
        client.netns.ip("-6 route flush cache");
        datagrams(&client, &weir, VIP, 1500 - overhead);
        datagrams(&client, &weir, VIP6, 1500 - overhead);
        weir.audit();
        sink.join().unwrap();
    }
}

/// A host on a bridge without any of our programs, whose interface does what interfaces of virtual
/// machines do by default: it leaves segments uncut and checksums undone.
fn plain_host(switch: &Netns, tag: &str, number: u8) -> Host {
    let netns = Netns::new(tag);
    switch.ip(&format!(
        "link add port{number} type veth peer name eth address 02:00:00:00:00:{number:02x}"
    ));
    switch.ip(&format!("link set eth netns {}", netns.path().display()));
    switch.ip(&format!("link set port{number} master sw up"));
    netns.ip("link set eth up");
    netns.ip(&format!("addr add 198.18.0.{number}/24 dev eth"));
    Host::in_netns(netns, number)
}

/// A sender on the same host leaves it to its interface to cut its segments: what comes in is as long as
/// no packet on a wire ever is, and is not too long for all that.
#[test]
fn segments_that_the_sender_did_not_cut_are_not_too_big() {
    let switch = Netns::new("switch");
    switch.ip("link add sw type bridge");
    switch.ip("link set sw up");
    let client = plain_host(&switch, "client", 1);
    let balancer = plain_host(&switch, "balancer", 2);
    let vm = plain_host(&switch, "vm", 11);
    client.route_vip(VIP, &balancer);
    vm.serve_vip(VIP);
    let sink = sink(&vm.netns, 81, 3);
    let weir = Weir::start(
        &balancer,
        &format!(
            "[[interface]]\nname = \"eth\"\nmode = \"generic\"\n\
             [[service]]\nname = \"up\"\naddress = \"{VIP}\"\nport = 81\nprotocol = \"tcp\"\n\
             [[service.backend]]\nname = \"vm\"\naddress = \"{}\"\n",
            vm.v4()
        ),
    );
    weir.wait_serving("up");
    let to = format!("{VIP}:81");
    for _ in 0..3 {
        let got = upload(&client.netns, &to, 4 * UPLOAD);
        let got =
            got.unwrap_or_else(|error| panic!("{error}\n{}\n{}", weir.log(), weir.cli("stats")));
        assert_eq!(got, 4 * UPLOAD);
    }
    let (packets, bytes) = (
        weir.backend("up", "vm", "packets").as_u64().unwrap(),
        weir.backend("up", "vm", "bytes").as_u64().unwrap(),
    );
    assert!(
        bytes > 1514 * packets,
        "{bytes} bytes in {packets} packets: nothing uncut was sent"
    );
    assert_eq!(count(&weir, "too_big"), 0);
    sink.join().unwrap();
}
