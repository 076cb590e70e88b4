//! Making disks equally full, as operators ask for it: a plan first, then a row that the work goes on by.

use super::operations::Refusal;
use crate::ledger::model::RebalanceRow;
use crate::maintenance::rebalance::MOVES_MAX;
use crate::object::Objects;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Asks what would be moved, or that it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RebalanceRequest {
    /// How far from the mean fullness a disk may be, in thousandths of a disk: 1 to 500.
    pub within_permille: u32,
    /// [`RebalancePlan::plan`], if it is to run.
    #[serde(default)]
    pub plan: Option<String>,
}

/// What would be moved. While it runs it is planned anew every few units, from what the disks hold then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RebalancePlan {
    /// What it is planned on.
    pub plan: String,
    /// See [`RebalanceRequest`].
    pub within_permille: u32,
    /// Units to be moved.
    pub units: usize,
    /// Their bytes.
    pub move_bytes: u64,
    /// How far from the mean fullness a disk is at most, as a share of a disk: before, and after.
    pub spread_now: f64,
    /// See `spread_now`.
    pub spread_then: f64,
}

/// The rebalancing that is going on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RebalanceStatus {
    /// See [`RebalanceRequest`].
    pub within_permille: u32,
    /// Units on their way now.
    pub units: usize,
}

impl Objects {
    /// What would be moved; with the fingerprint of such a plan, that it is.
    pub async fn rebalance(&self, request: &RebalanceRequest) -> Result<RebalancePlan, Refusal> {
        let within_permille = request.within_permille;
        if !(1..=500).contains(&within_permille) {
            return Err(Refusal::Refused(format!(
                "within {within_permille} thousandths of a disk: 1 to 500 make sense"
            )));
        }
        let plan = self.fingerprint();
        if request.plan.as_ref().is_some_and(|wanted| *wanted != plan) {
            return Err(Refusal::Outdated);
        }
        let within = f64::from(within_permille) / 1_000.0;
        let found = self.plan_rebalance(within, MOVES_MAX, &HashSet::new()).await?;
        if request.plan.is_some() && !found.moves.is_empty() {
            self.ask_rebalance(Some(RebalanceRow { within_permille })).await?;
            tracing::info!(
                within_permille,
                units = found.moves.len(),
                "rebalancing: an operator decided"
            );
        }
        Ok(RebalancePlan {
            plan,
            within_permille,
            units: found.moves.len(),
            move_bytes: found.moves.iter().map(|m| m.bytes).sum(),
            spread_now: found.spread_now,
            spread_then: found.spread_then,
        })
    }

    /// The rebalancing that is going on, if one is.
    pub async fn rebalance_status(&self) -> crate::error::Result<Option<RebalanceStatus>> {
        let asked = self.rebalance_asked().await?;
        Ok(asked.map(|asked| RebalanceStatus {
            within_permille: asked.within_permille,
            units: self.relocating(),
        }))
    }
}
