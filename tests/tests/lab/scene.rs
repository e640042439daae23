//! A service of two backends on one node, one client of it, and their books.

#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::net::SocketAddr;
use std::time::Duration;

use isthmus_tests::client::Report;
use isthmus_tests::hostile::{Account, Behaviour};
use isthmus_tests::{Lab, Node, Pod, Requests, Traffic, wait_for};

use super::books::{Books, Counted, Opened, Told};
use super::common::{ALONE, PORT, SERVICE, at_least, running};
use super::shield::{Kept, Shield};

pub(crate) const BACKENDS: [&str; 2] = ["east/backend-1", "east/backend-2"];
pub(crate) const RATE: f64 = 1000.0;
/// Connects under way at once: so many more than the rule says may fail, drawn before the ejection.
pub(crate) const WORKERS: usize = 2;
/// Longer than any first ejection, its trial, and one more of each.
pub(crate) const RETURN: Duration = Duration::from_secs(40);

pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) client: Traffic,
    pub(crate) target: SocketAddr,
    shield: Shield,
}

impl Scene {
    /// A client of the service's IPv4 address whose connects end after `patience`.
    pub(crate) fn set(name: &str, workers: usize, patience: Duration) -> Self {
        Self::in_lab(running(name, ALONE), workers, patience)
    }

    pub(crate) fn in_lab(lab: Lab, workers: usize, patience: Duration) -> Self {
        Self::asked(lab, |to| to.workers(workers).timeout(patience))
    }

    /// The same, whose connects end when the kernel says so; `patience` is for answers.
    pub(crate) fn blocking(lab: Lab, workers: usize, patience: Duration) -> Self {
        Self::asked(lab, |to| to.workers(workers).timeout(patience).blocking())
    }

    fn asked(lab: Lab, how: impl FnOnce(Requests) -> Requests) -> Self {
        let frontend = lab.node("east-1").unwrap().frontend(SERVICE, PORT, false);
        let target = frontend.unwrap().target().unwrap();
        let requests = how(Requests::to(&format!("{target}={SERVICE}")).unwrap());
        let mut client = lab.pod("east/client").unwrap().traffic(&requests).unwrap();
        client.rate(RATE).unwrap();
        at_least(&mut client, 200);
        client.pause().unwrap();
        Self {
            lab,
            client,
            target,
            shield: Shield::watch(),
        }
    }

    pub(crate) fn node(&self) -> Node<'_> {
        self.lab.node("east-1").unwrap()
    }

    pub(crate) fn pod(&self, name: &str) -> Pod<'_> {
        self.lab.pod(name).unwrap()
    }

    /// Nothing may be under way.
    pub(crate) fn open_books(&self) -> Opened {
        Opened {
            books: Books::open(self.node(), SERVICE, PORT),
            before: Told::by_client(self.client.total()),
            kept: self.shield.kept(),
        }
    }

    /// The books balance with all that the client told since they were opened. Nothing may be under way.
    pub(crate) fn balance(&self, opened: &Opened) -> Counted {
        self.balance_with(opened, Told::default())
    }

    /// What was kept from the programs since the books were opened.
    pub(crate) fn kept(&self, opened: &Opened) -> Kept {
        self.shield.kept().since(opened.kept)
    }

    /// The same, with what another told.
    pub(crate) fn balance_with(&self, opened: &Opened, other: Told) -> Counted {
        let told = Told::by_client(self.client.total()).since(opened.before);
        let told = told.and(other);
        let kernel = opened.books.since().and_kept(self.kept(opened), told);
        kernel.balance(self.lab.name(), told);
        kernel
    }

    /// Traffic from before `kill` until `wanted` backends are out, and some more; nothing is under way at the end.
    pub(crate) fn until_out(&mut self, wanted: u64, kill: impl FnOnce(&Self)) -> (Report, Opened) {
        let opened = self.open_books();
        self.client.rate(RATE).unwrap();
        at_least(&mut self.client, 100);
        kill(self);
        let mut report = Report::default();
        wait_for("dead backends are ejected", Duration::from_secs(20), || {
            report = std::mem::take(&mut report).and(&self.client.mark()?);
            Ok((opened.books.since().out >= wanted).then_some(()))
        })
        .unwrap();
        report = report.and(&self.more(200));
        report = report.and(&self.client.pause().unwrap());
        (report, opened)
    }

    /// Traffic while an agent goes and the next one comes, and some more; nothing is under way at the end. The books are of
    /// before.
    pub(crate) fn through(&mut self, restart: impl FnOnce(Node<'_>)) -> (Report, Opened) {
        let opened = self.open_books();
        self.client.rate(RATE).unwrap();
        let mut report = self.more(100);
        restart(self.node());
        report = report.and(&self.more(500));
        (report.and(&self.client.pause().unwrap()), opened)
    }

    pub(crate) fn more_paused(&mut self, requests: u64) -> Report {
        self.client.rate(RATE).unwrap();
        let report = self.more(requests);
        report.and(&self.client.pause().unwrap())
    }

    /// Connects one after the other, each waited for.
    pub(crate) fn connects(&self, count: u64) -> Account {
        self.pod("east/client")
            .hostile(Behaviour::Connect, &[self.target], count, Duration::ZERO)
            .unwrap()
    }

    /// All backends listen again.
    pub(crate) fn expect_first_connect(&mut self, opened: &Opened) {
        for backend in BACKENDS {
            self.pod(backend).start_server().unwrap();
        }
        let first = self.connects(1);
        assert_eq!((first.connects, first.established), (1, 1), "{first:?}");
        self.until_back();
        self.balance_with(opened, Told::by_hostile(&first, false));
    }

    /// All of the next requests, from the last report on.
    pub(crate) fn more(&mut self, requests: u64) -> Report {
        let mut report = Report::default();
        wait_for("requests are made", RETURN, || {
            report = std::mem::take(&mut report).and(&self.client.mark()?);
            Ok((report.requests >= requests).then_some(()))
        })
        .unwrap();
        report
    }

    /// Traffic until all backends are back and answer.
    pub(crate) fn until_back(&mut self) -> Report {
        self.client.rate(RATE).unwrap();
        let books = Books::open(self.node(), SERVICE, PORT);
        let mut report = Report::default();
        wait_for("backends are back and answer", RETURN, || {
            let stretch = self.more(100);
            report = std::mem::take(&mut report).and(&stretch);
            let good = stretch.failed() == 0 && stretch.answers.len() == BACKENDS.len();
            Ok((good && books.since().out == 0).then_some(()))
        })
        .unwrap();
        report.and(&self.client.pause().unwrap())
    }
}
