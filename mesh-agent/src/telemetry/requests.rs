//! What the requests of one connection have in common: names, series, the log's account of both sides. Made once for
//! each route and server, and found again by a few comparisons.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use serde_json::value::RawValue;

use super::Telemetry;
use super::labels::{Labels, Lane, Reporter, RequestLabels, RequestOutcome, Security, ServiceName};
use super::record::Party;
use super::request::{Progress, RequestRecord};
use super::request_series::RequestSeries;
use crate::model::route::RuleId;
use crate::model::workload::Workload;

/// Routes, and servers by route, that one connection remembers.
const REMEMBERED: usize = 64;

/// What the requests of one connection have in common.
#[derive(Debug)]
pub struct Requests {
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) reporter: Reporter,
    pub(super) source: Party,
    destination: Party,
    pub(super) service: Option<ServiceName>,
    security: Security,
    /// How requests end that are not over when the connection is.
    pub(super) over: Cell<Option<RequestOutcome>>,
    routes: RefCell<Vec<(RuleId, Arc<str>)>>,
    ends: RefCell<Vec<Rc<End>>>,
    pub(super) source_json: OnceCell<Box<RawValue>>,
}

/// Who requests of a route were sent to.
#[derive(Debug)]
pub(super) struct End {
    pub(super) route: Option<Arc<str>>,
    server: Option<(SocketAddr, Option<Arc<Workload>>)>,
    pub(super) party: Party,
    pub(super) security: Security,
    pub(super) series: Arc<RequestSeries>,
    pub(super) json: OnceCell<Box<RawValue>>,
}

/// A server that a request is sent to.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// Where it listens.
    pub addr: SocketAddr,
    /// The pod behind it, where one is known.
    pub workload: Option<&'a Arc<Workload>>,
    /// What protects the request on its way there.
    pub security: Security,
}

impl Requests {
    /// The requests of one connection; `destination` is what is known of every server of it.
    #[must_use]
    pub fn new(
        telemetry: &Arc<Telemetry>,
        reporter: Reporter,
        source: Party,
        (destination, service): (Party, Option<ServiceName>),
        security: Security,
    ) -> Rc<Self> {
        Rc::new(Self {
            telemetry: Arc::clone(telemetry),
            reporter,
            source,
            destination,
            service,
            security,
            over: Cell::default(),
            routes: RefCell::default(),
            ends: RefCell::default(),
            source_json: OnceCell::new(),
        })
    }

    /// Opens the record of a request whose head has come.
    #[must_use]
    pub fn begin(self: &Rc<Self>, head: &Parts) -> RequestRecord {
        self.telemetry.metrics().requests_live(self.reporter).inc();
        RequestRecord::new(Progress::new(Rc::clone(self), head))
    }

    /// The connection has ended: so have its requests, by `outcome`.
    pub fn over(&self, outcome: RequestOutcome) {
        self.over.set(Some(outcome));
    }

    /// A rule's name as the labels have it.
    pub(super) fn route(&self, id: &RuleId) -> Arc<str> {
        let mut routes = self.routes.borrow_mut();
        if let Some((_, name)) = routes.iter().find(|(known, _)| known == id) {
            return Arc::clone(name);
        }
        let name: Arc<str> = id.to_string().into();
        if routes.len() >= REMEMBERED {
            routes.clear();
        }
        routes.push((id.clone(), Arc::clone(&name)));
        name
    }

    /// Who requests of `route` are sent to.
    pub(super) fn end(&self, route: Option<&Arc<str>>, server: Option<Server<'_>>) -> Rc<End> {
        let mut ends = self.ends.borrow_mut();
        if let Some(end) = ends.iter().find(|end| end.is(route, server)) {
            return Rc::clone(end);
        }
        let (mut party, mut security) = (self.destination.clone(), self.security);
        if let Some(server) = server {
            party = Party::from(server.addr);
            security = server.security;
            if let Some(workload) = server.workload {
                party.name(workload);
                // A tunnel to anybody else does not come about.
                party.identity = (security == Security::MutualTls).then(|| workload.identity.clone());
            }
        }
        let labels = RequestLabels {
            connection: Labels {
                reporter: self.reporter,
                source_workload: self.source.workload.clone(),
                source_namespace: self.source.namespace.clone(),
                destination_service: self.service.clone(),
                destination_workload: party.workload.clone(),
                destination_namespace: party.namespace.clone(),
                lane: Lane::Http,
                security,
            },
            route: route.cloned(),
        };
        let series = self.telemetry.requests().find(&labels);
        let server = server.map(|server| (server.addr, server.workload.cloned()));
        let end = Rc::new(End { route: route.cloned(), server, party, security, series, json: OnceCell::new() });
        if ends.len() >= REMEMBERED {
            ends.clear();
        }
        ends.push(Rc::clone(&end));
        end
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        for end in self.ends.borrow().iter() {
            self.telemetry.requests().touch(&end.series);
        }
    }
}

impl End {
    /// Names of one connection are compared by where they are: it makes each once.
    fn is(&self, route: Option<&Arc<str>>, server: Option<Server<'_>>) -> bool {
        let same_route = match (&self.route, route) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        same_route
            && match (&self.server, server) {
                (Some((addr, workload)), Some(server)) => {
                    *addr == server.addr
                        && self.security == server.security
                        && match (workload, server.workload) {
                            (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.uid == other.uid,
                            (one, other) => one.is_none() && other.is_none(),
                        }
                }
                (one, other) => one.is_none() && other.is_none(),
            }
    }
}
