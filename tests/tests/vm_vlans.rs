//! VLANs and VLANs in VLANs, by the VLAN devices of two VMs with Debian's kernel: one runs the
//! balancer, which finds its backends behind them; the other is such a backend, and a client.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use lb_tests::http::get;
use lb_tests::lan::{Host, Lan};
use lb_tests::vm::{More, Port, Vm};
use lb_tests::wait;
use lb_tests::weir::binary;

/// Services whose client is behind one tag and behind two, and whose backend is.
const FROM_ONE: &str = "198.18.9.10";
const FROM_TWO: &str = "198.18.9.11";
const TO_ONE: &str = "198.18.9.12";
const TO_TWO: &str = "198.18.9.13";

/// VLAN 7, and VLAN 8 in the provider's VLAN 100.
const DEVICES: &str = "
/sbin/ip link add link eth0 name one type vlan id 7 egress-qos-map 0:3
/sbin/ip link add link eth0 name around type vlan proto 802.1ad id 100
/sbin/ip link add link around name two type vlan id 8
for device in one around two; do /sbin/ip link set $device up; done
/sbin/ip addr add 198.19.7.@/24 dev one
/sbin/ip addr add 198.19.8.@/24 dev two
";

/// Its checksums are whole, as on a wire: XDP carries none to be filled in later.
const CLIENT: &str = r"
ethtool -K eth0 tx off
/sbin/ip route add 198.18.9.10/32 via 198.19.7.21
/sbin/ip route add 198.18.9.11/32 via 198.19.8.21
for number in 10 11; do
cat > /www/cgi-bin/ask$number <<END
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 198.18.9.$number 80 2>&1 | tail -n 1
END
done
cat > /www/cgi-bin/received <<'END'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
cat /sys/class/net/one/statistics/rx_packets /sys/class/net/two/statistics/rx_packets
END
chmod +x /www/cgi-bin/*
";

fn config() -> String {
    let mut text = "[limits]\nservices = 16\nbackends = 64\nrows = 4096\nhalf_open_flows = 1024\n\
        confirmed_flows = 1024\nkept_flows = 1024\n[[interface]]\nname = \"eth0\"\n"
        .to_owned();
    for (name, vip, backend) in [
        ("from-one", FROM_ONE, "198.18.0.11"),
        ("from-two", FROM_TWO, "198.18.0.11"),
        ("to-one", TO_ONE, "198.19.7.22"),
        ("to-two", TO_TWO, "198.19.8.22"),
    ] {
        text += &format!(
            "[[service]]\nname = \"{name}\"\naddress = \"{vip}\"\nport = 80\nprotocol = \"tcp\"\n\
             [[service.backend]]\nname = \"vm\"\naddress = \"{backend}\"\n"
        );
    }
    text
}

/// Answers so many requests with "host".
fn serve(host: &Host, requests: usize) {
    let listener = host.netns.enter(|| {
        let any: SocketAddr = "[::]:80".parse().unwrap();
        TcpListener::bind(any).expect("a port")
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().take(requests).flatten() {
            let mut stream: TcpStream = stream;
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nhost");
        }
    });
}

#[test]
fn frames_come_and_go_with_one_tag_and_with_two() {
    let lan = Lan::new();
    let client = lan.host("client", 1);
    let host = lan.host("host", 11);
    for vip in [FROM_ONE, FROM_TWO] {
        host.serve_vip(vip);
    }
    host.netns.ip("route add 198.19.0.0/16 via 198.18.0.22");
    serve(&host, 6);
    for vip in [TO_ONE, TO_TWO] {
        client
            .netns
            .ip(&format!("route add {vip}/32 via 198.18.0.21"));
    }
    let boot = |number: u8, vips: &[&str], commands: &str, more: &More<'_>| {
        let commands = DEVICES.replace('@', &number.to_string()) + commands;
        let port = Port {
            netns: lan.switch(),
            tap: &lan.tap(number),
            gateway: None,
        };
        let more = More {
            commands: &commands,
            ..*more
        };
        Vm::boot_at(&port, &format!("198.18.0.{number}"), number, vips, &more)
    };
    let ethtool = ["/sbin/ethtool", "/usr/sbin/ethtool"]
        .into_iter()
        .map(Path::new)
        .find(|path| path.exists())
        .expect("ethtool");
    let more = More {
        programs: &[ethtool],
        ..More::default()
    };
    let vm = boot(22, &[TO_ONE, TO_TWO], CLIENT, &more);
    let weir = binary();
    let config = config();
    let more = More {
        programs: &[&weir],
        files: &[("/weir.toml", &config)],
        commands: "",
    };
    let commands = format!(
        "(weir run --config /weir.toml 2>&1 | cat) &\n\
         for name in from-one from-two to-one to-two; do\n\
         while ! weir service show $name --json 2>/dev/null | grep -q serving; do sleep 0.2; done; done\n\
         for vip in {TO_ONE} {TO_TWO}; do weir explain 198.18.0.1:4000 $vip:80 --json; done; weir audit; echo THE END"
    );
    let balancer = boot(21, &[], &commands, &more);
    wait::until("the balancer to serve", || {
        balancer.console().contains("THE END").then_some(())
    });
    let said = || format!("{} {}", balancer.console(), vm.console());
    let console = balancer.console();
    assert!(console.contains("are as they should be"), "{console}");
    // To the one VM's Ethernet address from the other's, and the tags: one with its priority; two.
    let addresses = "020000000016020000000015";
    for tags in ["81006007", "88a8006481000008"] {
        let frame = format!("{addresses}{tags}0800");
        assert!(console.contains(&frame), "no {frame}: {console}");
    }

    wait::until("the VM to serve", || get(&client, vm.address(), "/").ok());
    for vip in [TO_ONE, TO_TWO] {
        for _ in 0..5 {
            let answer = get(&client, vip, "/");
            assert_eq!(
                answer.unwrap_or_else(|error| panic!("{vip}: {error}: {}", said())),
                "vm"
            );
        }
    }
    let received = get(&client, vm.address(), "/cgi-bin/received").expect("the guest's counts");
    for count in received.split_whitespace() {
        let count: u64 = count.parse().expect("a count");
        assert!(count >= 15, "five requests: {received:?}");
    }
    for (number, vip) in [(10, FROM_ONE), (11, FROM_TWO)] {
        for _ in 0..3 {
            let answer = get(&client, vm.address(), &format!("/cgi-bin/ask{number}"));
            assert_eq!(
                answer.unwrap_or_else(|error| panic!("{vip}: {error}: {}", said())),
                "host",
                "{vip}: {}",
                said()
            );
        }
    }
}
