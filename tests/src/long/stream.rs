//! A TCP connection: each end writes numbered blocks, and expects the other's in order.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};

use super::{PACE, Progress, Running, is_nothing_yet, lock};

const BLOCK: usize = 1024;
/// Of a server's name, padded with zeros, behind the number.
const NAME: std::ops::Range<usize> = 8..72;

pub(super) fn start(target: SocketAddr, progress: &Arc<Mutex<Progress>>) -> Result<Running> {
    let stream = TcpStream::connect(target).context("connect")?;
    let (reader, writer) = (stream.try_clone()?, stream.try_clone()?);
    let (of_reader, of_writer) = (Arc::clone(progress), Arc::clone(progress));
    let end = Arc::new(AtomicBool::new(false));
    let never = Arc::clone(&end);
    std::thread::spawn(move || {
        let error = read(reader, &never, |server| {
            let mut progress = lock(&of_reader);
            progress.received += 1;
            *progress.servers.entry(server).or_default() += 1;
        });
        lock(&of_reader).broken.get_or_insert(error);
    });
    std::thread::spawn(move || {
        let error = write(writer, "client", &end, || lock(&of_writer).sent += 1);
        lock(&of_writer).broken.get_or_insert(error);
    });
    Ok(Running::Stream(stream, Arc::clone(progress)))
}

/// Writes numbered blocks until `end`, or what it returns.
pub(super) fn write(
    mut stream: TcpStream,
    name: &str,
    end: &AtomicBool,
    mut wrote: impl FnMut(),
) -> String {
    let mut block = [0; BLOCK];
    block[NAME][..name.len()].copy_from_slice(name.as_bytes());
    for number in 0_u64.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        block[..8].copy_from_slice(&number.to_be_bytes());
        if let Err(error) = stream.write_all(&block) {
            return format!("write: {error}");
        }
        wrote();
        // How fast this end writes, not a wait for anything.
        std::thread::sleep(PACE);
    }
    "the end".to_owned()
}

/// Reads numbered blocks and tells by whom each is, until `end`, or what it returns.
pub(super) fn read(
    mut stream: TcpStream,
    end: &AtomicBool,
    mut came: impl FnMut(String),
) -> String {
    let mut block = [0; BLOCK];
    for wanted in 0_u64.. {
        let mut length = 0;
        while length < BLOCK {
            match stream.read(&mut block[length..]) {
                Ok(0) => return "read: the other end closed".to_owned(),
                Ok(more) => length += more,
                Err(error) if is_nothing_yet(&error) => {
                    if end.load(Ordering::Relaxed) {
                        return "the end".to_owned();
                    }
                }
                Err(error) => return format!("read: {error}"),
            }
        }
        let number = block.first_chunk().copied().map(u64::from_be_bytes);
        if number != Some(wanted) {
            return format!("read: block {number:?} instead of {wanted}");
        }
        let name = String::from_utf8_lossy(&block[NAME]);
        came(name.trim_end_matches('\0').to_owned());
    }
    "the end".to_owned()
}
