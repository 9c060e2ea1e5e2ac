use anyhow::{Context as _, Result};
use hyper::Method;

use super::arguments::GuardCommand;
use super::commands::Output;
use super::tables::{finish, table};
use crate::api::{GuardTest, GuardTested, GuardView, ListLoad, ListReset};

/// Carries out a command about lists of sources.
pub async fn run(output: &Output<'_>, command: GuardCommand) -> Result<()> {
    match command {
        GuardCommand::Show => output.show(Method::GET, "/v1/guard", lists).await,
        GuardCommand::Load {
            list,
            file,
            service,
        } => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(&file).with_context(|| name.clone())?;
            let load = ListLoad {
                service,
                list,
                text,
                file: name,
            };
            output.done(Method::POST, "/v1/guard/load", &load).await
        }
        GuardCommand::Reset { list, service } => {
            let reset = ListReset { service, list };
            output.done(Method::POST, "/v1/guard/reset", &reset).await
        }
        GuardCommand::Test { source } => {
            let request = GuardTest { source };
            let client = output.client;
            let tested: GuardTested = client
                .send_json(Method::POST, "/v1/guard/test", &request)
                .await?;
            output.print(&tested, verdicts)
        }
    }
}

/// The lists and rates, one a line.
fn lists(view: &GuardView) -> String {
    if view.lists.is_empty() && view.rates.is_empty() {
        return "Everybody is let in: there is no list and no rate.".to_owned();
    }
    let mut table = table(&["SERVICE", "LIST", "IPV4", "IPV6", "FROM"], &[2, 3]);
    for list in &view.lists {
        table.add_row([
            list.service.clone().unwrap_or_else(|| "(all)".to_owned()),
            list.list.clone(),
            list.ipv4.to_string(),
            list.ipv6.to_string(),
            if list.loaded {
                "weir guard load"
            } else {
                "configuration"
            }
            .to_owned(),
        ]);
    }
    let mut text = finish(&table);
    if !view.rates.is_empty() {
        let mut table = self::table(&["SERVICE", "RATE", "PER SECOND", "BURST"], &[2, 3]);
        for rate in &view.rates {
            table.add_row([
                rate.service.clone(),
                rate.rate.clone(),
                rate.per_second.to_string(),
                rate.burst.to_string(),
            ]);
        }
        let lists = if view.lists.is_empty() { "" } else { "\n\n" };
        text = format!(
            "{}{lists}{}",
            if view.lists.is_empty() { "" } else { &text },
            finish(&table)
        );
    }
    text
}

/// To whom a source is let in, one service a line.
fn verdicts(tested: &GuardTested) -> String {
    if tested.services.is_empty() {
        return "No service has addresses of this family.".to_owned();
    }
    let mut table = table(&["SERVICE", "", "WHY"], &[]);
    for verdict in &tested.services {
        table.add_row([
            verdict.service.clone(),
            if verdict.let_in { "let in" } else { "dropped" }.to_owned(),
            verdict.why.clone(),
        ]);
    }
    finish(&table)
}
