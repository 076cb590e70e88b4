//! `cairn ledger accept`: a gateway whose ledger is behind the disks only reads; this says that the ledger is to be used all the same.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::commands::disk_online::agreed;
use crate::output::{say, show};
use clap::Args;
use gateway::admin::accept::AcceptPlan;
use std::fmt::Write;
use std::time::Duration;

/// A commit, and questions to all disks.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct AcceptArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Show the plan, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub async fn run(args: AcceptArgs) -> CommandResult {
    let plan: AcceptPlan = args.admin.get_json("/v1/ledger/accept").await?;
    match args.json {
        true => say!("{}", serde_json::to_string(&plan)?),
        false => show!("{}", render(&plan)),
    }
    if args.dry_run {
        return Ok(());
    }
    if !args.yes && !agreed()? {
        return Err("nothing was done".into());
    }
    let () = args.admin.post("/v1/ledger/accept", &plan, PATIENCE).await?;
    if !args.json {
        say!("accepted; the gateway starts anew with this ledger");
    }
    Ok(())
}

fn render(plan: &AcceptPlan) -> String {
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "{name:<12}{text}"); // A string takes everything.
    };
    line(
        "ledger",
        format!("generation {}, commit {}", plan.generation, plan.position),
    );
    for disk in &plan.newer {
        let known = format!("generation {}, commit {}", disk.generation, disk.position);
        line("newer", format!("{} knows of {known}", disk.disk));
    }
    for disk in &plan.away {
        line(
            "away",
            format!(
                "{disk} cannot be asked: if it knows of something newer, the gateway only reads again when it comes"
            ),
        );
    }
    for disk in &plan.unlisted {
        line(
            "unlisted",
            format!("{disk} is taken in: this ledger does not know it"),
        );
    }
    if plan.moved_volumes > 0 {
        line(
            "moved",
            format!(
                "{} volumes: their units are taken where disks have them",
                plan.moved_volumes
            ),
        );
    }
    if plan.unknown_volumes > 0 {
        let what = format!(
            "{} volumes with {} shards",
            plan.unknown_volumes, plan.unknown_shards
        );
        line(
            "unknown",
            format!("{what} that this ledger does not know are left where they are"),
        );
    }
    line(
        "given up",
        "every commit since this ledger was copied: objects written since are not listed, objects deleted since are \
         listed and cannot be read; nothing is deleted from the disks"
            .into(),
    );
    line(
        "then",
        format!(
            "generation {}, blobs from {}, volumes from {}",
            plan.next_generation, plan.next_blob, plan.next_volume
        ),
    );
    out
}
