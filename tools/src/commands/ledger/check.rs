//! `cairn ledger check`: looks at all of a ledger that nobody has open, and changes nothing; or tells what a running gateway knows of its.

use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::commands::disk::CannotRead;
use crate::output::say;
use clap::Args;
use gateway::admin::ledger::DamageLine;
use gateway::admin::status::Status;
use gateway::ledger::redb::offline::{self, Report};
use std::path::PathBuf;

/// Lines of one kind that are shown.
const SHOWN_MAX: usize = 50;

#[derive(Args)]
pub struct CheckArgs {
    /// The directory of a gateway that does not run; without it a running one is asked
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArgs,
}

pub async fn run(args: CheckArgs) -> CommandResult {
    let Some(data) = &args.data else {
        return online(&args).await;
    };
    let path = data.join("ledger.redb");
    let checked = tokio::task::spawn_blocking(move || offline::check(&path)).await?;
    let report = checked.map_err(|error| CannotRead(error.to_string()))?;
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&report)?),
        false => say!("{}", render(&report)),
    }
    match report.is_clean() {
        true => Ok(()),
        false => Err("the ledger is damaged: `cairn ledger repair` goes on without what is lost".into()),
    }
}

async fn online(args: &CheckArgs) -> CommandResult {
    let status = args.admin.get_json::<Status>("/v1/status").await;
    let status = status.map_err(|error| CannotRead(error.to_string()))?;
    let damage = status.ledger.damage;
    let damage =
        damage.ok_or_else(|| CannotRead("this gateway's ledger is not one that is looked through".into()))?;
    match args.json {
        true => say!("{}", serde_json::to_string_pretty(&damage)?),
        false => say!("{}", known(&damage)),
    }
    match damage.is_any() {
        true => Err("the ledger is damaged".into()),
        false => Ok(()),
    }
}

fn known(damage: &DamageLine) -> String {
    let mut lines = vec![format!(
        "{} rows and {} pages are known to be damaged, {} wrong bits were set right since the start",
        damage.rows, damage.pages, damage.corrected
    )];
    lines.extend(damage.words.iter().map(|word| format!("damaged    {word}")));
    if damage.repair.repairs > 0 {
        lines.push(format!(
            "repaired   {} times since the start, {} rows from the archive",
            damage.repair.repairs, damage.repair.rows
        ));
    }
    lines.extend(damage.repair.waits.iter().map(|why| format!("waits      {why}")));
    lines.push(match &damage.last_pass {
        Some(pass) => format!(
            "last pass  ended {}: {} rows, {} that could not be read; {} blocks, {} not what was written, in use or not",
            gateway::clock::rfc3339(pass.ended_ms),
            pass.rows,
            pass.gaps,
            pass.blocks,
            pass.blocks_wrong
        ),
        None => "last pass  none has ended since the start".to_owned(),
    });
    lines.join("\n")
}

fn render(report: &Report) -> String {
    let sums = match report.has_sums {
        true => "checked",
        false => "without checksums (the next start makes them)",
    };
    let whole = if report.is_tree_whole {
        "hold"
    } else {
        "do not hold"
    };
    let mut lines = vec![
        format!(
            "ledger     at commit {}, {} more in its log",
            report.position, report.log_commits
        ),
        format!(
            "file       {} blocks, {sums}: {} with one wrong bit, {} damaged; redb's checksums {whole}",
            report.blocks,
            report.correctable_blocks.len(),
            report.damaged_blocks.len()
        ),
        format!("rows       {} verified", report.rows),
    ];
    let mut list = |name: &str, what: &[String]| {
        lines.extend(
            what.iter()
                .take(SHOWN_MAX)
                .map(|line| format!("{name:<10} {line}")),
        );
        if what.len() > SHOWN_MAX {
            lines.push(format!("{name:<10} and {} more", what.len() - SHOWN_MAX));
        }
    };
    list("damaged", &report.damaged);
    let unreadable: Vec<String> = report
        .unreadable_blocks
        .iter()
        .map(|block| format!("block {block}"))
        .collect();
    list("unreadable", &unreadable);
    list("log", &report.log_damage);
    list("dangling", &report.references);
    if report.is_clean() {
        lines.push("nothing is wrong".to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        check: CheckArgs,
    }

    #[tokio::test]
    async fn a_gateway_that_does_not_answer_is_no_damaged_ledger() {
        let line = Line::try_parse_from(["check", "--admin", "http://127.0.0.1:1"]).unwrap();
        let error = run(line.check).await.unwrap_err();
        assert!(error.downcast_ref::<CannotRead>().is_some(), "{error}");
    }
}
