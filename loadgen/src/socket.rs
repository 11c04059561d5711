//! Sockets of a farm: many source addresses, small buffers, and an end without TIME_WAIT.
use mio::net::TcpStream;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Connections from one source address: under the 28,232 ports of Linux's default `ip_local_port_range`.
pub const PER_SOURCE: usize = 20_000;

/// How a connection is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOrder {
    /// Address to come from; None lets the kernel choose.
    pub source: Option<Ipv4Addr>,
    /// Receive buffer in bytes, before the kernel rounds it up; None for the usual one.
    pub receive_bytes: Option<usize>,
    /// Closing resets the connection, so that no port waits in TIME_WAIT.
    pub reset_on_close: bool,
}

/// The source address of connection `number` (counted over all processes) to `target`: loopback has 2^24 of them, each with its own ports.
pub fn source_of(target: SocketAddr, number: usize) -> Option<Ipv4Addr> {
    match target.ip() {
        IpAddr::V4(address) if address.is_loopback() && number >= PER_SOURCE => {
            let block = (number / PER_SOURCE) as u32 % 0x00ff_ff00;
            Some(Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + block))
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
        bind(&socket, &SocketAddr::from((source, 0)))?;
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
        assert_eq!(source_of(target, PER_SOURCE), Some(Ipv4Addr::new(127, 0, 0, 2)));
        assert_eq!(source_of(target, 300 * PER_SOURCE), Some(Ipv4Addr::new(127, 0, 1, 45)));
        assert_eq!(source_of("192.0.2.1:3333".parse().expect("address"), PER_SOURCE), None);
    }

    #[test]
    fn a_connection_comes_from_the_address_that_was_ordered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let source = Ipv4Addr::new(127, 0, 0, 9);
        let order = SocketOrder { source: Some(source), receive_bytes: Some(4096), reset_on_close: true };
        let _stream = connect(listener.local_addr().expect("address"), order).expect("connect");
        let (_, peer) = listener.accept().expect("accept");
        assert_eq!(peer.ip(), IpAddr::V4(source));
    }
}
