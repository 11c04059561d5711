//! Sockets of a farm: many source addresses, small buffers, and an end without TIME_WAIT.
use mio::net::TcpStream;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

/// Connections from one source address: well under half of the 28,232 ports of Linux's default `ip_local_port_range`, as the kernel's search for a free one takes
/// every other port first and grows long where those are in use.
pub const PER_SOURCE: usize = 10_000;
/// First port that is named for a connection from a source address of its own. Named ports lie below Linux's default range: a search for a free one grows with
/// every port in use, and the kernel gives no port that was bound by name to a connection that names no source.
const PORT_FIRST: u16 = 10_240;

/// How a connection is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOrder {
    /// Address and port to come from, another port where that one is taken; None lets the kernel choose.
    pub source: Option<SocketAddrV4>,
    /// Receive buffer in bytes, before the kernel rounds it up; None for the usual one.
    pub receive_bytes: Option<usize>,
    /// Closing resets the connection, so that no port waits in TIME_WAIT.
    pub reset_on_close: bool,
}

/// The source of connection `number` (counted over all processes) to `target`: loopback has 2^24 of them, each with its own ports.
pub fn source_of(target: SocketAddr, number: usize) -> Option<SocketAddrV4> {
    match target.ip() {
        IpAddr::V4(address) if address.is_loopback() && number >= PER_SOURCE => {
            let block = (number / PER_SOURCE) as u32 % 0x00ff_ff00;
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + block);
            Some(SocketAddrV4::new(source, PORT_FIRST + (number % PER_SOURCE) as u16))
        }
        _ => None,
    }
}

/// Starts a connection without waiting for it.
pub fn connect(target: SocketAddr, order: SocketOrder) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    if let Some(bytes) = order.receive_bytes {
        sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    }
    if order.reset_on_close {
        sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    }
    if let Some(source) = order.source {
        bind(&socket, &SocketAddr::V4(source)).or_else(|_| bind(&socket, &SocketAddr::from((*source.ip(), 0))))?;
    }
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(TcpStream::from_std(std::net::TcpStream::from(socket)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_farm_leaves_the_first_address_only_when_its_ports_run_out() {
        let target = "127.0.0.1:3333".parse().expect("address");
        assert_eq!(source_of(target, PER_SOURCE - 1), None);
        assert_eq!(source_of(target, PER_SOURCE), Some(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), PORT_FIRST)));
        assert_eq!(source_of(target, 2 * PER_SOURCE - 1), Some(SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 2), 20_239)));
        assert_eq!(source_of(target, 300 * PER_SOURCE), Some(SocketAddrV4::new(Ipv4Addr::new(127, 0, 1, 45), PORT_FIRST)));
        assert_eq!(source_of("192.0.2.1:3333".parse().expect("address"), PER_SOURCE), None);
    }

    #[test]
    fn a_connection_comes_from_the_address_that_was_ordered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let source = Ipv4Addr::new(127, 0, 0, 9);
        // The port that the second asks for is taken by the first, so it gets another.
        let probe = std::net::TcpListener::bind((source, 0)).expect("a free port");
        let port = probe.local_addr().expect("bound").port();
        drop(probe);
        let order = SocketOrder { source: Some(SocketAddrV4::new(source, port)), receive_bytes: Some(4096), reset_on_close: true };
        let (_first, _second) = [(); 2].map(|()| connect(listener.local_addr().expect("address"), order).expect("connect")).into();
        let (_, first) = listener.accept().expect("accept");
        let (_, second) = listener.accept().expect("accept");
        assert_eq!((first, second.ip()), (SocketAddr::from((source, port)), IpAddr::V4(source)));
        assert_ne!(second.port(), port);
    }
}
