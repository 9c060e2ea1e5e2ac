//! Datagrams that don't fit into one packet, by real sockets and as raw frames, through the real daemon:
//! a VM gets all of their fragments or none.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use lb_tests::decap::Decap;
use lb_tests::frame::{Address, L4, Packet, ethernet};
use lb_tests::lan::{Host, Lan};
use lb_tests::pieces::cut;
use lb_tests::wait;
use lb_tests::weir::Weir;

const VIP: &str = "198.18.9.10";
const VIP6: &str = "2001:db8:9::10";
const PATIENCE: Duration = Duration::from_secs(5);

/// A VM's socket on the virtual address.
fn receiver(vm: &Host, vip: &str) -> UdpSocket {
    let address = SocketAddr::new(vip.parse().unwrap(), 80);
    let socket = vm.netns.enter(|| UdpSocket::bind(address)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    socket
}

/// Returns the datagrams that came to a VM: from which port, and what.
fn received(socket: &UdpSocket, until: usize) -> BTreeMap<u16, Vec<u8>> {
    let mut datagrams = BTreeMap::new();
    let mut bytes = vec![0; 70_000];
    let started = std::time::Instant::now();
    while datagrams.len() < until && started.elapsed() < PATIENCE {
        if let Ok((len, from)) = socket.recv_from(&mut bytes) {
            datagrams.insert(from.port(), bytes[..len].to_vec());
        }
    }
    datagrams
}

fn count(weir: &Weir<'_>, reason: &str) -> u64 {
    weir.json("stats")["reasons"][reason].as_u64().unwrap()
}

/// What a datagram from a port holds.
fn content(port: u16, len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n * 11 + usize::from(port)) as u8)
        .collect()
}

fn config(vms: &[&Host], forward: &str, more: &str) -> String {
    let mut config = format!("[[interface]]\nname = \"eth\"\nmode = \"native\"\n{more}");
    for (name, vip) in [("dns", VIP), ("dns6", VIP6)] {
        config += &format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"udp\"\nforward = \"{forward}\"\n"
        );
        for (number, vm) in (1..).zip(vms) {
            let address = if forward == "l2" && vip == VIP6 {
                vm.v6()
            } else {
                vm.v4()
            };
            config +=
                &format!("[[service.backend]]\nname = \"vm{number}\"\naddress = \"{address}\"\n");
        }
    }
    config
}

#[test]
fn large_datagrams_of_real_sockets_arrive_whole_at_the_vm_of_their_flow() {
    const CLIENTS: usize = 8;
    for forward in ["l2", "ipip"] {
        let lan = Lan::new();
        let client = lan.host("client", 1);
        let balancer = lan.host("balancer", 2);
        let vms = [lan.host("vm1", 11), lan.host("vm2", 12)];
        for vip in [VIP, VIP6] {
            client.route_vip(vip, &balancer);
            for vm in &vms {
                vm.serve_vip(vip);
            }
        }
        let _decaps: Vec<_> = vms.iter().map(Decap::attach).collect();
        let weir = Weir::start(&balancer, &config(&[&vms[0], &vms[1]], forward, ""));
        weir.wait_serving("dns");
        weir.wait_serving("dns6");
        for vip in [VIP, VIP6] {
            let sockets = vms.each_ref().map(|vm| receiver(vm, vip));
            let to = SocketAddr::new(vip.parse().unwrap(), 80);
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let before = count(&weir, "fragment");
            let mut sent = BTreeMap::new();
            for _ in 0..CLIENTS {
                let socket = client.netns.enter(|| UdpSocket::bind(any)).unwrap();
                let port = socket.local_addr().unwrap().port();
                // A tunnel leaves less than the link: the sender learns that by its first one.
                if forward != "l2" && sent.is_empty() {
                    let told = count(&weir, "too_big");
                    wait::until("the path MTU to be learned", || {
                        let _ = socket.send_to(&[0; 8000], to);
                        (count(&weir, "too_big") > told).then_some(())
                    });
                    std::thread::sleep(Duration::from_millis(100));
                    for vm in &sockets {
                        while vm.recv(&mut [0; 9000]).is_ok() {}
                    }
                }
                let datagram = content(port, 8000);
                socket.send_to(&datagram, to).unwrap();
                sent.insert(port, datagram);
            }
            let got = sockets
                .each_ref()
                .map(|socket| received(socket, CLIENTS / 2));
            // Which VM gets how many, nobody knows: the rest comes now.
            let rest = sockets.each_ref().map(|socket| {
                let mut more = BTreeMap::new();
                let mut bytes = vec![0; 70_000];
                while let Ok((len, from)) = socket.recv_from(&mut bytes) {
                    more.insert(from.port(), bytes[..len].to_vec());
                }
                more
            });
            let all: BTreeMap<u16, Vec<u8>> = got.into_iter().chain(rest).flatten().collect();
            assert!(
                all == sent,
                "{vip} by {forward}: {:?} of {:?} arrived\n{}",
                all.keys(),
                sent.keys(),
                weir.cli("stats")
            );
            assert!(count(&weir, "fragment") >= before + 5 * CLIENTS as u64);
        }
        weir.audit();
    }
}

/// Puts frames on a host's wire.
fn send_raw(from: &Host, frames: &[Vec<u8>]) {
    use nix::sys::socket::{
        AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike as _, sendto, socket,
    };
    let ifindex = from.netns.ifindex("eth");
    from.netns.enter(|| {
        let fd = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .expect("a raw socket");
        let raw = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        let len = Some(size_of::<libc::sockaddr_ll>() as u32);
        // SAFETY: a link-layer address of that size.
        let to = unsafe { LinkAddr::from_raw((&raw const raw).cast(), len) }.expect("an address");
        let fd = std::os::fd::AsRawFd::as_raw_fd(&fd);
        for frame in frames {
            sendto(fd, frame, &to, MsgFlags::empty()).expect("sending a frame");
        }
    });
}

#[test]
fn raw_fragments_arrive_in_order_and_are_lost_or_refused_in_reverse() {
    for forward in ["l2", "ipip"] {
        let lan = Lan::new();
        let client = lan.host("client", 1);
        let balancer = lan.host("balancer", 2);
        let vm = lan.host("vm1", 11);
        for vip in [VIP, VIP6] {
            vm.serve_vip(vip);
        }
        let _decap = Decap::attach(&vm);
        let weir = Weir::start(&balancer, &config(&[&vm], forward, ""));
        weir.wait_serving("dns");
        weir.wait_serving("dns6");
        let fragments = |vip: &str, port: u16, id: u32| {
            let address = |text: &str| match text.parse::<IpAddr>().unwrap() {
                IpAddr::V4(address) => Address::V4(address.octets()),
                IpAddr::V6(address) => Address::V6(address.octets()),
            };
            let v4 = !vip.contains(':');
            let packet = Packet {
                source: address(&if v4 { client.v4() } else { client.v6() }),
                destination: address(vip),
                payload: content(port, 4000),
                ..Packet::v4(L4::Udp, port)
            };
            let parts = cut(&packet, id, 1000);
            let frames = parts.iter().map(|part| {
                let (from, to) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
                ethernet(from, to, None, &part.ip)
            });
            frames.collect::<Vec<_>>()
        };
        for vip in [VIP, VIP6] {
            let socket = receiver(&vm, vip);
            let (followed, passed) = (count(&weir, "fragment"), count(&weir, "pass_fragment"));
            send_raw(&client, &fragments(vip, 5001, 1));
            let got = received(&socket, 1);
            assert_eq!(
                got,
                BTreeMap::from([(5001, content(5001, 4000))]),
                "{vip} by {forward}"
            );
            assert_eq!(count(&weir, "fragment"), followed + 4);
            // All but the first in any order.
            let mut frames = fragments(vip, 5002, 2);
            frames[1..].reverse();
            send_raw(&client, &frames);
            let got = received(&socket, 1);
            assert_eq!(
                got,
                BTreeMap::from([(5002, content(5002, 4000))]),
                "{vip} by {forward}"
            );
            assert_eq!(count(&weir, "fragment"), followed + 8);
            assert_eq!(count(&weir, "pass_fragment"), passed);
            // The first one last: the others went to the host.
            let mut frames = fragments(vip, 5003, 3);
            frames.reverse();
            send_raw(&client, &frames);
            wait::until("the fragments to pass", || {
                (count(&weir, "pass_fragment") == passed + 4).then_some(())
            });
            assert!(socket.recv(&mut [0; 9000]).is_err(), "nothing whole came");
            // Sent once more, as an application does, they are there.
            send_raw(&client, &fragments(vip, 5003, 4));
            assert_eq!(received(&socket, 1).len(), 1);
        }
        weir.write_config(&config(
            &[&vm],
            forward,
            "[fragments]\nunknown = \"drop\"\n",
        ));
        let changed = weir.cli("reload");
        assert_eq!(changed.trim(), "fragments, unknown: pass -> drop");
        let dropped = count(&weir, "drop_fragment");
        let mut frames = fragments(VIP, 5004, 5);
        frames.reverse();
        send_raw(&client, &frames);
        wait::until("the fragments to be dropped", || {
            (count(&weir, "drop_fragment") == dropped + 4).then_some(())
        });
        assert!(
            weir.cli("status")
                .contains("fragments: unknown drop, timeout 30s")
        );
        weir.audit();
    }
}
