//! `cairn disk` and `cairn node` `drain`, `retire`, `activate`, `remove`, and `cairn disk replace`: what operators decide about a
//! cluster that runs.
//! Each shows a plan first, and runs only what was planned.

use super::disk_online::agreed;
use crate::CommandResult;
use crate::admin_client::AdminArgs;
use crate::output::{say, show};
use crate::size::format_size;
use clap::Args;
use gateway::admin::nodes::{AddAnswer, AddRequest, BlankLine, BlankName, DiskList};
use gateway::admin::operations::{Action, ApplyRequest, Plan, PlanRequest, Subject};
use std::time::Duration;

/// A decision is one commit.
const PATIENCE: Duration = Duration::from_secs(30);
/// Formatting a large disk takes minutes.
const ADD_PATIENCE: Duration = Duration::from_secs(660);

#[derive(Args)]
pub struct DecideArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Its name (or a disk's id)
    name: String,
    /// Lose what nothing else has: its name once more
    #[arg(long, value_name = "NAME")]
    force: Option<String>,
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

#[derive(Args)]
pub struct ReplaceArgs {
    #[command(flatten)]
    decide: DecideArgs,
    /// The blank disk that comes in its place, by its path on its node; if there is one only, it is that
    #[arg(long, value_name = "PATH")]
    with: Option<String>,
    /// The node of that disk
    #[arg(long, value_name = "NODE", requires = "with")]
    node: Option<String>,
}

/// Shows what an action would do, and does it when that is wanted.
pub async fn disk(args: DecideArgs, action: Action) -> CommandResult {
    let subject = Subject::Disk(args.name.clone());
    run(args, subject, action).await
}

/// As [`disk`], for all disks of a node.
pub async fn node(args: DecideArgs, action: Action) -> CommandResult {
    let subject = Subject::Node(args.name.clone());
    run(args, subject, action).await
}

async fn run(args: DecideArgs, subject: Subject, action: Action) -> CommandResult {
    let plan = plan(&args, &subject, action).await?;
    if args.dry_run {
        return show(&args, &plan);
    }
    if !args.json {
        show!("{}", render(&plan));
    }
    may_run(&args, &plan)?;
    let done = apply(&args, subject, action, &plan).await?;
    match args.json {
        true => say!("{}", serde_json::to_string(&done)?),
        false => say!("{}", what_now(&done)),
    }
    Ok(())
}

/// A blank disk joins, and the old one is given up: what it held is rebuilt on all disks, the new one among them.
pub async fn replace(args: ReplaceArgs) -> CommandResult {
    let decide = &args.decide;
    let subject = Subject::Disk(decide.name.clone());
    let plan = plan(decide, &subject, Action::Retire).await?;
    let list: DiskList = decide.admin.get_json("/v1/disks").await?;
    let new = new_disk(&list.blank, &args)?;
    if decide.dry_run {
        return show(decide, &plan);
    }
    if !decide.json {
        show!("{}", render(&plan));
        say!(
            "new disk   {} of {}, {}",
            new.path,
            new.node,
            format_size(new.size)
        );
    }
    may_run(decide, &plan)?;
    let request = AddRequest {
        disks: vec![BlankName {
            node: new.node.clone(),
            path: new.path.clone(),
        }],
        overwrite: false,
    };
    let added: AddAnswer = decide.admin.post("/v1/disks", &request, ADD_PATIENCE).await?;
    if let Some(failed) = added.disks.iter().find_map(|line| line.error.as_ref()) {
        return Err(format!("{} of {} was not added: {failed}", new.path, new.node).into());
    }
    // The new disk is part of what the old plan did not know; nothing else may have changed.
    let again = self::plan(decide, &subject, Action::Retire).await?;
    if (again.units, &again.lost_volumes) != (plan.units, &plan.lost_volumes) {
        return Err(format!(
            "the new disk was added, but {} has changed since this was planned: `cairn disk retire {}` shows how it is now",
            subject.name(), subject.name()
        )
        .into());
    }
    let done = apply(decide, subject, Action::Retire, &again).await?;
    match decide.json {
        true => say!("{}", serde_json::json!({ "added": added.disks, "retired": done })),
        false => {
            added
                .disks
                .iter()
                .for_each(|line| say!("added      {}", line.label));
            say!("{}", what_now(&done));
        }
    }
    Ok(())
}

fn new_disk<'a>(blank: &'a [BlankLine], args: &ReplaceArgs) -> Result<&'a BlankLine, String> {
    let fits = |line: &&BlankLine| {
        line.holds.is_none()
            && args.with.as_ref().is_none_or(|path| *path == line.path)
            && args.node.as_ref().is_none_or(|node| *node == line.node)
    };
    let found: Vec<&BlankLine> = blank.iter().filter(fits).collect();
    match (&found[..], &args.with) {
        ([one], _) => Ok(one),
        ([], Some(path)) => Err(format!(
            "no node has an empty disk {path}; `cairn disk list` shows those there are"
        )),
        ([], None) => Err(
            "no node has an empty disk: put one in, name it in the node's configuration, and start the node again; or retire the disk without a new one: `cairn disk retire`".into(),
        ),
        (several, _) => Err(format!(
            "there are {} empty disks: say which with --with and --node",
            several.len()
        )),
    }
}

async fn plan(
    args: &DecideArgs,
    subject: &Subject,
    action: Action,
) -> Result<Plan, Box<dyn std::error::Error + Send + Sync>> {
    let request = PlanRequest {
        subject: subject.clone(),
        action,
    };
    args.admin.post("/v1/plan", &request, PATIENCE).await
}

async fn apply(
    args: &DecideArgs,
    subject: Subject,
    action: Action,
    plan: &Plan,
) -> Result<Plan, Box<dyn std::error::Error + Send + Sync>> {
    let request = ApplyRequest {
        subject,
        action,
        plan: plan.plan.clone(),
        force: args.force.clone(),
    };
    args.admin.post("/v1/apply", &request, PATIENCE).await
}

fn show(args: &DecideArgs, plan: &Plan) -> CommandResult {
    match args.json {
        true => say!("{}", serde_json::to_string(plan)?),
        false => show!("{}", render(plan)),
    }
    Ok(())
}

fn may_run(args: &DecideArgs, plan: &Plan) -> CommandResult {
    let forced = args.force.as_deref() == Some(plan.subject.name());
    if let Some(why) = plan.refused.as_ref().filter(|_| !forced) {
        return Err(why.as_str().into());
    }
    if !args.yes && !agreed()? {
        return Err("nothing was done".into());
    }
    Ok(())
}

/// A plan for people.
fn render(plan: &Plan) -> String {
    let what = match &plan.subject {
        Subject::Disk(_) => "the disk".to_owned(),
        Subject::Node(_) if plan.disks.is_empty() => "a node without disks".to_owned(),
        Subject::Node(_) => format!("the node's disks {}", plan.disks.join(", ")),
    };
    let action = match plan.action {
        Action::Drain => format!("drain: copies elsewhere first, until nothing is on {what}"),
        Action::Retire => format!("retire: gives up {what} now, and rebuilds from the others"),
        Action::Activate => format!("activate: new units for {what} again"),
        Action::Remove => format!("remove: the cluster forgets {what}"),
    };
    let mut out = format!("plan       {}, {action}\n", plan.subject.name());
    let mut line = |name: &str, text: String| out.push_str(&format!("{name:<10} {text}\n"));
    if matches!(plan.action, Action::Drain | Action::Retire) {
        line(
            "moves",
            format!(
                "{} units, about {}, to {} disks",
                plan.units,
                format_size(plan.move_bytes),
                plan.targets
            ),
        );
        if plan.stuck_units > 0 {
            line(
                "waits",
                format!(
                    "{} units, until there is a disk in a failure domain of its own for each",
                    plan.stuck_units
                ),
            );
        }
    }
    if let (Some(now), Some(then)) = (plan.spare_now, plan.spare_then) {
        line(
            "redundancy",
            format!(
                "survives {} more losses now, {} until it is done",
                now.max(0),
                then.max(0)
            ),
        );
    }
    if !plan.lost_volumes.is_empty() {
        line(
            "LOSES",
            format!("what is in {} volumes, for good", plan.lost_volumes.len()),
        );
    }
    if let Some(why) = &plan.refused {
        line("refused", why.clone());
    }
    out
}

fn what_now(plan: &Plan) -> String {
    let (what, name) = (plan.subject.word(), plan.subject.name());
    match plan.action {
        Action::Drain | Action::Retire if plan.units > 0 => format!(
            "{name} is on its way out: `cairn rebuild status` says how far; `cairn {what} remove {name}` when it holds nothing"
        ),
        Action::Drain | Action::Retire => format!("{name} holds nothing; `cairn {what} remove {name}`"),
        Action::Activate => format!("{name} is active"),
        Action::Remove if matches!(plan.subject, Subject::Node(_)) => format!(
            "{name} is forgotten, with its certificate: to come back, the machine joins anew, with an empty data directory"
        ),
        Action::Remove => format!("{name} is forgotten"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_says_what_it_moves_and_what_it_risks() {
        let plan = Plan {
            subject: Subject::Disk("disk-3".into()),
            disks: vec!["disk-3".into()],
            action: Action::Retire,
            plan: "00".into(),
            units: 4,
            move_bytes: 3 << 30,
            spare_now: Some(2),
            spare_then: Some(1),
            targets: 9,
            lost_volumes: vec![7],
            stuck_units: 1,
            refused: Some("no".into()),
        };
        let text = render(&plan);
        for part in [
            "4 units, about 3 GiB, to 9 disks",
            "survives 2 more losses now, 1 until",
            "waits      1 units",
            "LOSES      what is in 1 volumes",
            "refused    no",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
