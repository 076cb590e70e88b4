//! `cairn rebalance`: moves units until all disks are about equally full.

use super::disk_online::agreed;
use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::output::{say, show};
use crate::size::format_size;
use clap::Args;
use gateway::admin::rebalance::{RebalancePlan, RebalanceRequest};
use std::time::Duration;

/// Every disk is asked what it holds.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct RebalanceArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How far from the mean a disk's fullness may be, in percent of a disk
    #[arg(long, value_name = "PERCENT", default_value = "5", value_parser = parse_percent)]
    within: u32,
    /// End the rebalancing that is going on; what has moved stays
    #[arg(long, conflicts_with_all = ["within", "dry_run"])]
    stop: bool,
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

/// Percent, as thousandths.
fn parse_percent(text: &str) -> Result<u32, String> {
    let percent: f64 = text
        .trim_end_matches('%')
        .parse()
        .map_err(|_| format!("{text:?} is not a number"))?;
    match (0.1..=50.0).contains(&percent) {
        true => Ok((percent * 10.0).round() as u32),
        false => Err("0.1 to 50 percent make sense".into()),
    }
}

pub async fn run(args: RebalanceArgs) -> CommandResult {
    if args.stop {
        let nothing = serde_json::json!({});
        let _: () = args.admin.post("/v1/rebalance/stop", &nothing, PATIENCE).await?;
        say!("{}", if args.json { "{}" } else { "nothing moves any more" });
        return Ok(());
    }
    let mut request = RebalanceRequest {
        within_permille: args.within,
        plan: None,
    };
    let plan: RebalancePlan = args.admin.post("/v1/rebalance", &request, PATIENCE).await?;
    if !args.json {
        show!("{}", render(&plan));
    }
    if !args.dry_run && plan.units > 0 {
        if !args.yes && !agreed()? {
            return Err("nothing was done".into());
        }
        request.plan = Some(plan.plan.clone());
        let _: RebalancePlan = args.admin.post("/v1/rebalance", &request, PATIENCE).await?;
        if !args.json {
            say!("units are on their way: `cairn rebuild status` says how far");
        }
    }
    if args.json {
        say!("{}", serde_json::to_string(&plan)?);
    }
    Ok(())
}

fn render(plan: &RebalancePlan) -> String {
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    let spread = format!("disks are within {} of the mean now", percent(plan.spread_now));
    match plan.units {
        0 if plan.spread_now * 1_000.0 <= f64::from(plan.within_permille) => {
            format!("{spread}: nothing is to move\n")
        }
        0 => format!("{spread}, and no move would help\n"),
        units => format!(
            "plan       rebalance: copies first, every volume keeps its redundancy\n\
             moves      {units} units, {}\n\
             fullness   {spread}, {} then\n",
            format_size(plan.move_bytes),
            percent(plan.spread_then)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_readable() {
        let mut plan = RebalancePlan {
            plan: "00".into(),
            within_permille: 50,
            units: 3,
            move_bytes: 2 << 30,
            spread_now: 0.31,
            spread_then: 0.041,
        };
        let text = render(&plan);
        assert!(text.contains("3 units, 2 GiB"), "{text}");
        assert!(
            text.contains("within 31.0 % of the mean now, 4.1 % then"),
            "{text}"
        );
        plan.units = 0;
        assert!(render(&plan).contains("no move would help"));
        plan.spread_now = 0.05;
        assert!(render(&plan).contains("nothing is to move"));
    }

    #[test]
    fn percents_are_parsed() {
        assert_eq!(parse_percent("5"), Ok(50));
        assert_eq!(parse_percent("2.5%"), Ok(25));
        assert!(parse_percent("0").is_err() && parse_percent("x").is_err() && parse_percent("99").is_err());
    }
}
