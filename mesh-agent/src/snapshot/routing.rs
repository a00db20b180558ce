//! Which routes whose connections meet.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::route::{PortRoutes, ServiceRef};
use crate::model::service::ServicePort;

/// The routes in force, by Service port. Generations with the same routes share one.
#[derive(Debug, Default)]
pub struct Routing(HashMap<ServiceRef, Attached>);

/// The routes of one Service port.
#[derive(Debug, Default)]
struct Attached {
    producer: Option<Arc<PortRoutes>>,
    consumers: HashMap<Arc<str>, Arc<PortRoutes>>,
}

impl Routing {
    pub(super) fn new(routes: &[Arc<PortRoutes>]) -> Self {
        let mut attached: HashMap<ServiceRef, Attached> = HashMap::new();
        for routes in routes {
            let at = attached.entry(routes.service.clone()).or_default();
            match &routes.consumer {
                Some(namespace) => {
                    at.consumers.insert(Arc::clone(namespace), Arc::clone(routes));
                }
                None => at.producer = Some(Arc::clone(routes)),
            }
        }
        Self(attached)
    }

    /// The routes of `service` for clients of this namespace: their own, else the producer's.
    pub(super) fn of(&self, service: &ServicePort, client_namespace: &str) -> Option<&Arc<PortRoutes>> {
        if self.0.is_empty() {
            return None;
        }
        let attached = self.0.get(&service.reference())?;
        attached.consumers.get(client_namespace).or(attached.producer.as_ref())
    }

    pub(super) fn has(&self, service: &ServicePort) -> bool {
        !self.0.is_empty() && self.0.contains_key(&service.reference())
    }
}
