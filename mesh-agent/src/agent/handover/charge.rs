//! Coming into charge: from the first pods enrolled to the predecessor's end.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::predecessor;
use super::successor::{End, Mandate};
use crate::admin::{AdminError, Condition};
use crate::agent::duties::Duties;
use crate::agent::kernel_config;
use crate::capture::Owner;
use crate::config::Config;

/// A predecessor closes its metrics endpoint at once when it is asked to.
const METRICS_WITHIN: Duration = Duration::from_secs(10);

/// How often a place that another agent is just leaving is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// An agent that was killed, or stops, lets go of its instance within this.
const FREE_WITHIN: Duration = Duration::from_secs(5);

/// The instance, unless a predecessor has it that hands it over.
///
/// # Errors
/// When an agent has it that is not the predecessor.
pub(in crate::agent) async fn claim(config: &Config, mandate: Option<&Mandate>) -> Result<Option<Owner>> {
    let deadline = Instant::now() + FREE_WITHIN;
    let instance = kernel_config(config);
    loop {
        let owner = Owner::claim(&instance)?;
        if owner.is_some() || mandate.is_some() {
            return Ok(owner);
        }
        if Instant::now() > deadline {
            bail!(
                "another agent of instance {} runs, with another --state-dir than {}: give this one the same, to take \
                 over, or another --instance",
                config.instance,
                config.state_dir.display()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// An agent on its way into charge.
pub(in crate::agent) struct Charge {
    mandate: Option<Mandate>,
    owner: Option<Owner>,
    /// Told when every pod that an earlier agent had captured is served by this one.
    standing: Option<oneshot::Receiver<()>>,
    duties: Option<Duties>,
    succeeded: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

impl Charge {
    /// `owner` is none while a predecessor has the instance. `succeeded` is told when another agent has taken over
    /// from this one.
    pub(in crate::agent) fn new(
        (mandate, owner): (Option<Mandate>, Option<Owner>),
        standing: oneshot::Receiver<()>,
        duties: Duties,
        succeeded: oneshot::Sender<()>,
    ) -> Self {
        let (standing, duties, succeeded) = (Some(standing), Some(duties), Some(succeeded));
        Self { mandate, owner, standing, duties, succeeded, serving: None }
    }

    /// Comes into charge and stays there; ends only by an error. May be dropped at any time.
    ///
    /// # Errors
    /// When the predecessor has taken the node back, or a place that this agent must serve cannot be had.
    pub(in crate::agent) async fn run(&mut self) -> Result<Infallible> {
        let Some(mut duties) = self.duties.take() else { return pending().await };
        let metrics_are_free = duties.serve_metrics().await?;
        if !metrics_are_free && self.mandate.is_none() {
            return Err(in_use(&duties).into());
        }
        self.announce(!metrics_are_free).await?;
        duties.serve_status()?;
        // The plugin asks here from now on; the predecessor has been told of some until a moment ago.
        let book = Arc::clone(&duties.enroller.book);
        book.read_again();
        serve_metrics(&mut duties).await?;
        let (ready, kernel) = (Arc::clone(&duties.ready), Arc::clone(&duties.kernel));
        let instance = kernel_config(&duties.config);
        let listener = predecessor::listen(&duties.config.state_dir)?;
        if let Some(succeeded) = self.succeeded.take() {
            self.serving = Some(tokio::spawn(async move {
                match predecessor::serve(listener, duties).await {
                    Ok(()) => drop(succeeded.send(())),
                    Err(error) => tracing::error!(%error, "no other agent can take over from this one any more"),
                }
            }));
        }
        ready.holds(Condition::Handover);
        if let Some(mandate) = &mut self.mandate {
            tracing::info!("in charge of this node; the other agent serves what it still has");
            if mandate.over().await == End::TakenBack {
                bail!("the other agent of this instance has taken the node back");
            }
            tracing::info!("the other agent has closed its listeners");
            // It has answered the last question that was asked of it.
            book.read_again();
            self.mandate = None;
        }
        while self.owner.is_none() {
            self.owner = Owner::claim(&instance)?;
            tokio::time::sleep(LOOK).await;
        }
        stands(&mut self.standing).await;
        // Nobody else needs them any more.
        kernel.remove_earlier_maps();
        pending().await
    }

    /// Waits until every pod is served from here and tells the predecessor. Without one there is nobody to tell.
    async fn announce(&mut self, wants_metrics: bool) -> Result<()> {
        let Some(mandate) = &mut self.mandate else { return Ok(()) };
        let end = tokio::select! {
            biased;
            () = stands(&mut self.standing) => None,
            end = mandate.over() => Some(end),
        };
        match end {
            None if mandate.done(wants_metrics).await.is_ok() => {}
            Some(End::TakenBack) => {
                bail!("the other agent of this instance has taken the node back: not every pod could be served in time")
            }
            _ => {
                tracing::info!("the agent that ran is gone");
                self.mandate = None;
            }
        }
        Ok(())
    }

    /// Hands over to nobody any more, and gives the node back to a predecessor that still waits for this agent's end.
    /// The instance is free for another agent.
    pub(in crate::agent) async fn leave(self) {
        if let Some(serving) = self.serving {
            serving.abort();
        }
        if let Some(mandate) = self.mandate {
            mandate.give_back().await;
        }
    }
}

/// Waits until every pod is served from here.
async fn stands(standing: &mut Option<oneshot::Receiver<()>>) {
    if let Some(told) = standing {
        if told.await.is_err() {
            // The thread that cares for the pods has ended: the agent is ending.
            return pending().await;
        }
        *standing = None;
    }
}

/// Opens the metrics endpoint, at an address that a predecessor is just leaving.
async fn serve_metrics(duties: &mut Duties) -> Result<()> {
    let deadline = Instant::now() + METRICS_WITHIN;
    while !duties.serve_metrics().await? {
        if Instant::now() > deadline {
            return Err(in_use(duties)).context("the predecessor did not leave it");
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn in_use(duties: &Duties) -> AdminError {
    AdminError::Metrics { address: duties.config.metrics, source: std::io::ErrorKind::AddrInUse.into() }
}
