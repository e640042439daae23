//! Flows that live through whatever a scenario does to agents, maps and backends.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use isthmus_tests::{FlowKind, Lab, LongFlow, LongServer, Node};

use super::books::{Books, Told};
use super::common::named_service;
use super::scene::BACKENDS;

const PORT: u16 = 7000;
const SERVICE: &str = "production/long";

/// Long flows of `east/client`, by TCP and by datagrams with and without a connect, over IPv4 and IPv6. The other ends are not the
/// backends' servers, and outlive them.
pub(crate) struct LongFlows {
    flows: Vec<LongFlow>,
    books: Books,
    _servers: Vec<LongServer>,
}

impl LongFlows {
    pub(crate) fn begin(lab: &Lab) -> Self {
        let serve = |name| LongServer::start(&lab.pod(name).unwrap(), PORT).unwrap();
        let servers = BACKENDS.map(serve).into();
        let manifests = lab.cluster("east").unwrap().manifests();
        let object = named_service("long", PORT, PORT, &[]);
        manifests.write_objects("long.yaml", &[object]).unwrap();
        let node = lab.node("east-1").unwrap();
        node.wait_frontend(SERVICE, PORT, "has both", |f| f.serving() == 2)
            .unwrap();
        let books = Books::of(node, node.frontends_of(SERVICE, PORT).unwrap());
        let pod = lab.pod("east/client").unwrap();
        let flow = |(kind, v6)| {
            let frontend = node.frontend(SERVICE, PORT, v6).unwrap();
            pod.long_flow(frontend.target().unwrap(), kind).unwrap()
        };
        let kinds = [
            FlowKind::Stream,
            FlowKind::Datagrams,
            FlowKind::ConnectedDatagrams,
        ];
        let kinds = kinds.into_iter();
        let kinds = kinds.flat_map(|kind| [(kind, false), (kind, true)]);
        let mut flows = Self {
            flows: kinds.map(flow).collect(),
            books,
            _servers: servers,
        };
        flows.go_on("from the beginning");
        flows
    }

    /// Each goes on in both directions, unbroken, at the one backend that it began with, which is shown as the service.
    pub(crate) fn go_on(&mut self, why: &str) {
        let told = |e| panic!("{why}: {e:#}");
        let before: Vec<_> = self
            .flows
            .iter_mut()
            .map(|flow| flow.progress().unwrap_or_else(told))
            .collect();
        for (flow, before) in self.flows.iter_mut().zip(&before) {
            let progress = flow.goes_on(before).unwrap_or_else(told);
            assert_eq!(progress.servers.len(), 1, "{why}: {progress:?}");
        }
    }

    /// An agent has put other maps in the place of those that were there.
    pub(crate) fn change_over(&mut self, node: Node<'_>) {
        self.books.change_over(node);
    }

    /// The kernel sent each flow to a backend once, whatever came after, and saw none fail.
    pub(crate) fn balance(&self) {
        let told = Told::established(self.flows.len() as u64);
        self.books.since().balance(SERVICE, told);
    }

    /// Which backend each flow is at.
    pub(crate) fn servers(&mut self) -> Vec<String> {
        let at = |flow: &mut LongFlow| {
            let progress = flow.progress().unwrap();
            progress.servers.into_keys().next().unwrap()
        };
        self.flows.iter_mut().map(at).collect()
    }

    /// Datagrams that one end had in flight at a time, at least.
    pub(crate) fn most_in_flight(&mut self) -> u64 {
        let all = self.flows.iter_mut().map(|flow| flow.progress().unwrap());
        let of_datagrams = all.filter(|progress| progress.most_in_flight > 0);
        of_datagrams.map(|p| p.most_in_flight).min().unwrap_or(0)
    }
}
