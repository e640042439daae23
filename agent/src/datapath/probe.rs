//! The proof that the hooks meet sockets: a frontend without a ring, for a moment, by which a connect must be refused.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use isthmus_abi::{Frontend4Key, FrontendValue, NetPort, ScopeProtocol};
use isthmus_core::table::{TableBackend, TableError};

use super::{CgroupError, DatapathError, Proof};

/// An address of TEST-NET-1 (RFC 5737): nobody's service.
const PROBE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

/// `connect` says whether a connect was refused, `grace` returns when a grace period has passed.
///
/// The hash hands out a deleted element's memory at once, so insertion waits for a grace period here as in
/// reconciliation, whose own deletions may be as young; and nothing deleted here is younger than one when this returns.
pub(super) fn probe(
    frontends: &mut dyn TableBackend<Frontend4Key, FrontendValue>,
    grace: impl Fn() -> io::Result<()>,
    connect: impl FnOnce(SocketAddr) -> Result<(), CgroupError>,
) -> Result<Proof, DatapathError> {
    let grace = || grace().map_err(DatapathError::NoGrace);
    let (address, port) = PROBE;
    let key = Frontend4Key {
        address: u32::from(address).to_be(),
        port: NetPort::from_host(port),
        scope_protocol: ScopeProtocol::new(0, ScopeProtocol::UDP),
    };
    let value = FrontendValue {
        service: u32::MAX,
        reserved: 0,
    };
    // An agent that was killed in the middle of its own.
    frontends.remove(key)?;
    grace()?;
    match frontends.put(key, value) {
        // What is served has the room. A node must not lose its agent for a probe.
        Err(TableError::Full { .. }) => return Ok(Proof::NoRoom),
        put => put?,
    }
    let seen = connect(SocketAddr::from(PROBE));
    frontends.remove(key)?;
    grace()?;
    seen?;
    Ok(Proof::Seen)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::PathBuf;

    use super::*;

    type Log = RefCell<Vec<&'static str>>;

    struct Frontends<'a> {
        log: &'a Log,
        full: bool,
    }

    impl TableBackend<Frontend4Key, FrontendValue> for Frontends<'_> {
        fn name(&self) -> &'static str {
            "frontends4"
        }

        fn capacity(&self) -> u32 {
            1
        }

        fn put(&mut self, _: Frontend4Key, _: FrontendValue) -> Result<(), TableError> {
            self.log.borrow_mut().push("put");
            if self.full {
                return Err(TableError::Full {
                    table: self.name(),
                    capacity: 1,
                    flag: "",
                });
            }
            Ok(())
        }

        fn remove(&mut self, _: Frontend4Key) -> Result<(), TableError> {
            self.log.borrow_mut().push("remove");
            Ok(())
        }

        fn for_each(
            &self,
            _: &mut dyn FnMut(Frontend4Key, FrontendValue),
        ) -> Result<(), TableError> {
            Ok(())
        }
    }

    #[test]
    fn every_insertion_waits_for_what_was_deleted_before() {
        let blind = || CgroupError::Blind {
            path: PathBuf::new(),
        };
        let whole = ["remove", "grace", "put", "connect", "remove", "grace"];
        let rows = [
            (false, true, Some(Proof::Seen), &whole[..]),
            (false, false, None, &whole[..]),
            (true, true, Some(Proof::NoRoom), &whole[..3]),
        ];
        for (full, seen, wanted, steps) in rows {
            let log = Log::default();
            let say = |word| log.borrow_mut().push(word);
            let mut frontends = Frontends { log: &log, full };
            let connect = |_| {
                say("connect");
                if seen { Ok(()) } else { Err(blind()) }
            };
            let grace = || {
                say("grace");
                Ok(())
            };
            assert_eq!(probe(&mut frontends, grace, connect).ok(), wanted);
            assert_eq!(*log.borrow(), steps);
        }
    }
}
