//! Policies on every node, and the webhooks as the API server of a Kubernetes cluster calls them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::client::Method;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::wait;
use chaos_tests::webhooks::{ApiServer, Files, Hook, pod};
use serde_json::{Value, json};

use crate::fixture::{SOON, each, flotilla, is_error, on_cluster, push_small, want};

const OURS: &str = "name: ours\nmode: enforce\nnamespaces: [prod]\ndefault: deny\nrules:\n- name: ours\n  images: ['reg.example/**']\n  verb: approve\n- name: here\n  images: ['reg.example/**']\n  verb: {require: {exists: true}}\n";

async fn put(cluster: &Cluster, node: usize, name: &str, document: &str) -> Result<u64> {
    let path = format!("/api/v1/policies/{name}");
    let done = want(&each(cluster)[node], Method::PUT, &path, &[], document.to_owned(), &[204]).await?;
    Ok(done.header("flotilla-revision").context("a revision")?.parse()?)
}

#[test]
fn policies_are_put_read_and_brought_back_on_every_node() -> Result<()> {
    on_cluster(async |cluster| {
        let (clients, path) = (each(cluster), "/api/v1/policies/kept");
        let (first, second) =
            ("name: kept\nmode: audit\ndefault: approve\n", "name: kept\nmode: warn\ndefault: approve\n");
        let put_one = want(&clients[0], Method::PUT, path, &[("if-none-match", "*")], first, &[204]).await?;
        want(&clients[1], Method::PUT, path, &[("if-none-match", "*")], second, &[412]).await?;
        let etag = put_one.header("etag").context("a tag")?.to_owned();
        let put_two = want(&clients[1], Method::PUT, path, &[("if-match", &etag)], second, &[204]).await?;
        let again = want(&clients[2], Method::PUT, path, &[], second, &[204]).await?;
        ensure!(again.header("etag") == put_two.header("etag"), "the same again is no change");
        let revision = etag.trim_matches('"');
        for client in &clients {
            let shown = client.get(path).await?.expect(&[200])?;
            ensure!(shown.text() == second && shown.header("etag") == put_two.header("etag"));
            ensure!(client.get(&format!("{path}?revision={revision}")).await?.text() == first);
            let listed = client.get("/api/v1/policies").await?.expect(&[200])?.json();
            let listed =
                listed["policies"].as_array().context("a list")?.iter().find(|one| one["name"] == "kept").cloned();
            ensure!(listed.is_some_and(|one| one["mode"] == "warn"));
            let history = client.get(&format!("{path}/history")).await?.expect(&[200])?.json();
            ensure!(history["history"].as_array().is_some_and(|versions| versions.len() == 2), "{history}");
        }
        for (document, said) in [
            ("name: other\nmode: warn\ndefault: deny\n", "other"),
            ("name: kept\nmode: warn\ndefault: deny\nrule: []\n", "rule"),
            ("name: kept\nmode: warn\ndefault: deny\nrules:\n- images: [nginx]\n  verb: deny\n", "rules[0].images[0]"),
        ] {
            let refused = want(&clients[0], Method::PUT, path, &[], document, &[400]).await?;
            is_error(&refused, &[400], &["UNSUPPORTED"])?;
            ensure!(refused.text().contains(said), "{}", refused.text());
        }
        let back = json!({"revision": revision.parse::<u64>()?}).to_string();
        want(&clients[2], Method::POST, &format!("{path}/rollback"), &[], back, &[204]).await?;
        ensure!(clients[0].get(path).await?.text() == first);
        want(&clients[0], Method::DELETE, path, &[], "", &[204]).await?;
        for client in &clients {
            is_error(&client.get(path).await?, &[404], &[])?;
            want(client, Method::DELETE, path, &[], "", &[404]).await?;
        }
        Ok(())
    })
}

/// Runs a test on nodes that serve webhooks.
fn with_webhooks(arguments: &[&str], test: impl AsyncFnOnce(&Cluster, &ApiServer) -> Result<()>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(async {
        let extra_args = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let cluster = Cluster::start(Options { webhooks: true, extra_args, ..Options::default() }).await?;
        let api_server = cluster.api_server()?;
        let settings = json!({"registry_names": ["reg.example"]}).to_string();
        want(&each(&cluster)[0], Method::PUT, "/api/v1/settings", &[], settings, &[204]).await?;
        let result = test(&cluster, &api_server).await;
        cluster.judged(result)
    })
}

#[test]
fn pods_are_judged_and_pinned_by_every_node() -> Result<()> {
    with_webhooks(&[], async |cluster, api_server| {
        let (image, _) = push_small(cluster, "team/app", "v1").await?;
        let (ours, absent) = ("reg.example/team/app:v1", "reg.example/team/app:v2");
        for _ in cluster.nodes() {
            let free = api_server.call(Hook::Validate, &pod("prod", &["nginx", absent])).await?;
            ensure!(free.allowed, "no policy yet: {}", free.message);
        }
        // In force on all nodes for what begins after this.
        let revision = put(cluster, 0, "ours", OURS).await?;
        for node in 0..3 {
            ensure!(api_server.is_ready(node).await?);
            let denied = api_server.call_at(node, Hook::Validate, &pod("prod", &["nginx", absent, ours])).await?;
            ensure!(!denied.allowed);
            for said in ["ours", "containers[0]", "nginx", "containers[1]", absent, "push it first"] {
                ensure!(denied.message.contains(said), "{said}: {}", denied.message);
            }
            ensure!(!denied.message.contains("containers[2]"), "{}", denied.message);
            ensure!(denied.annotations["policy"] == format!("ours@{revision}"), "{}", denied.annotations);
            ensure!(api_server.call_at(node, Hook::Validate, &pod("dev", &["nginx"])).await?.allowed);

            let pinned = api_server.call_at(node, Hook::Mutate, &pod("prod", &[ours])).await?;
            let text = format!("{ours}@{}", image.digest);
            let wanted = json!([{"op": "replace", "path": "/spec/containers/0/image", "value": text}]);
            ensure!(pinned.patch == Some(wanted), "{:?}", pinned.patch);
            let fine = api_server.call_at(node, Hook::Validate, &pod("prod", &[&text])).await?;
            ensure!(fine.allowed && fine.warnings.is_empty(), "{}", fine.message);
            let again = api_server.call_at(node, Hook::Mutate, &pod("prod", &[&text])).await?;
            ensure!(again.allowed && again.patch.is_none());
        }
        for (number, client) in each(cluster).into_iter().enumerate() {
            let explained = client.get(&format!("/api/v1/admission/explain?image={absent}&namespace=prod")).await?;
            let explained = explained.expect(&[200])?.json();
            ensure!(
                explained["allowed"] == false && explained["policies"][0]["findings"][0]["rule"] == "here",
                "{explained}"
            );
            let metric = cluster.metric(cluster.node(number), "flotilla_admission_requests_total").await?;
            ensure!(metric >= 6.0, "{metric} reviews counted");
        }
        Ok(())
    })
}

/// C46, and the same for the authority of the callers.
#[test]
fn c46_certificates_that_change_on_disk_serve_new_connections() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let caller = Files::make(&folder.path().join("caller"))?;
    let authority = caller.authority.display().to_string();
    with_webhooks(&["--admission-client-ca", &authority], async |cluster, stranger| {
        let review = pod("prod", &["nginx"]);
        let (files, ports) = cluster.webhooks()?;
        let known = || ApiServer::new(files, ports.to_vec(), Some(&caller));
        let ends = "admission_certificate_ends_timestamp_seconds";
        ensure!(cluster.metric(cluster.node(0), &format!("flotilla_{ends}")).await? > 1.8e9);
        let before = known()?;
        for node in 0..3 {
            ensure!(before.call_at(node, Hook::Validate, &review).await?.allowed);
            ensure!(stranger.call_at(node, Hook::Validate, &review).await.is_err(), "no certificate was asked for");
        }
        files.renew()?;
        for node in 0..3 {
            let renewed = async || known()?.call_at(node, Hook::Validate, &review).await;
            wait::until_ok(Duration::from_secs(60), "the new certificate is shown", renewed).await?;
        }
        // Who had a connection keeps it.
        for node in 0..3 {
            ensure!(before.call_at(node, Hook::Validate, &review).await?.allowed);
        }
        let former = known()?;
        caller.renew()?;
        for node in 0..3 {
            let renewed = async || known()?.call_at(node, Hook::Validate, &review).await;
            wait::until_ok(Duration::from_secs(60), "the new caller is let in", renewed).await?;
            ensure!(former.call_at(node, Hook::Validate, &review).await.is_err(), "the former caller is let in");
        }
        Ok(())
    })
}

#[test]
fn policies_of_files_are_put_once() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |text: &str| std::fs::write(folder.path().join("first.yaml"), text);
    write(&format!("{OURS}---\nname: other\nmode: audit\ndefault: approve\n"))?;
    let place = folder.path().display().to_string();
    with_webhooks(&["--admission-policies", &place], async |cluster, api_server| {
        let denied = async || {
            for node in 0..3 {
                let denied = api_server.call_at(node, Hook::Validate, &pod("prod", &["nginx"])).await?;
                ensure!(!denied.allowed, "before the first policy as after it");
                ensure!(denied.message.contains("ours"), "{}", denied.message);
            }
            Ok(())
        };
        wait::until_ok(SOON, "the policies are in force", denied).await?;
        let clients = each(cluster);
        for name in ["ours", "other"] {
            let history = clients[1].get(&format!("/api/v1/policies/{name}/history")).await?.expect(&[200])?.json();
            ensure!(history["history"].as_array().is_some_and(|versions| versions.len() == 1), "{history}");
        }
        // What people do later stays, whatever the files say.
        want(&clients[0], Method::DELETE, "/api/v1/policies/other", &[], "", &[204]).await?;
        write("name: third\nmode: audit\ndefault: approve\n")?;
        cluster.node(2).kill();
        cluster.node(2).restart()?;
        cluster.wait_ready(SOON).await?;
        let listed = clients[2].get("/api/v1/policies").await?.expect(&[200])?.json();
        let names: Vec<_> = listed["policies"].as_array().context("a list")?.iter().map(|one| &one["name"]).collect();
        ensure!(names == ["ours"], "{names:?}");
        // A file that is wrong is found at the start, with its place.
        write("name: third\nmode: audit\ndefault: approve\nrules:\n- {images: ['['], verb: deny}\n")?;
        let data = folder.path().join("data").display().to_string();
        let arguments = ["serve", "--data-dir", &data, "--admission-policies", &place];
        let ports = ["--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--peer-advertise", "127.0.0.1:7000"];
        let (done, said) = flotilla(&[&arguments[..], &ports].concat()).await?;
        ensure!(!done && said.contains("first.yaml") && said.contains("rules[0].images[0]"), "{said}");
        Ok(())
    })
}

async fn without_two(cluster: &Cluster, api_server: &ApiServer) -> Result<()> {
    put(cluster, 0, "ours", OURS).await?;
    push_small(cluster, "team/app", "v1").await?;
    let review = pod("prod", &["reg.example/team/app:v1"]);
    for node in 0..3 {
        ensure!(api_server.call_at(node, Hook::Validate, &review).await?.allowed);
    }
    for node in &cluster.nodes()[1..] {
        node.kill();
    }
    Ok(())
}

#[test]
fn without_a_quorum_a_node_decides_by_what_it_has_and_says_so() -> Result<()> {
    with_webhooks(&["--admission-max-staleness", "12s"], async |cluster, api_server| {
        without_two(cluster, api_server).await?;
        let (fine, bad) = (pod("prod", &["reg.example/team/app:v1"]), pod("prod", &["nginx"]));
        wait::until_ok(SOON, "the loss is noticed", async || {
            let answer = api_server.call_at(0, Hook::Validate, &fine).await?;
            ensure!(answer.took < Duration::from_secs(4) && answer.allowed, "{}", answer.message);
            ensure!(answer.annotations["stale"] == "true", "{}", answer.annotations);
            ensure!(answer.warnings.iter().any(|text| text.contains("may be old")), "{:?}", answer.warnings);
            Ok(())
        })
        .await?;
        ensure!(!api_server.call_at(0, Hook::Validate, &bad).await?.allowed);
        wait::until_ok(SOON, "the bound of staleness", async || {
            let answer = api_server.call_at(0, Hook::Validate, &fine).await?;
            ensure!(!answer.allowed && answer.message.contains("max_staleness"), "{}", answer.message);
            Ok(())
        })
        .await
    })
}

#[test]
fn the_strict_deny_without_a_quorum() -> Result<()> {
    with_webhooks(&["--admission-without-quorum", "deny"], async |cluster, api_server| {
        without_two(cluster, api_server).await?;
        let fine = pod("prod", &["reg.example/team/app:v1"]);
        let denied = api_server.call_at(0, Hook::Validate, &fine).await?;
        ensure!(!denied.allowed && denied.message.contains("without_quorum"), "{}", denied.message);
        ensure!(denied.annotations["stale"].is_null(), "nothing was decided: {}", denied.annotations);
        // Who takes the validating webhook away to get out is not stopped by the other one.
        let unpinned = api_server.call_at(0, Hook::Mutate, &fine).await?;
        ensure!(unpinned.allowed && unpinned.patch.is_none() && unpinned.warnings.len() == 1, "{unpinned:?}");
        let left_out = async || {
            ensure!(!api_server.is_ready(0).await?, "it is ready");
            Ok(())
        };
        wait::until_ok(SOON, "a Service leaves it out", left_out).await?;
        let explained = each(cluster)[0].get("/api/v1/admission/explain?image=nginx&namespace=dev").await?;
        let explained = explained.expect(&[200])?.json();
        ensure!(explained["allowed"] == false && explained["stale"] == true, "{explained}");
        // C40: what has no image to judge goes on.
        let mut deletion = fine;
        deletion["request"]["operation"] = "DELETE".into();
        deletion["request"]["object"] = Value::Null;
        ensure!(api_server.call_at(0, Hook::Validate, &deletion).await?.allowed);
        Ok(())
    })
}

#[test]
fn policies_from_the_command_line() -> Result<()> {
    on_cluster(async |cluster| {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("policies.yaml");
        std::fs::write(
            &file,
            "# two\nname: one\nmode: audit\ndefault: approve\n---\nname: two\nmode: warn\nnamespaces: [cli]\ndefault: deny\n",
        )?;
        let (file, url) = (file.display().to_string(), cluster.node(1).url.clone());
        let (done, said) = flotilla(&["policy", "apply", "-f", &file, "--url", &url]).await?;
        ensure!(done && said.matches("done at revision").count() == 2, "{said}");
        let (done, said) = flotilla(&["policy", "list", "--url", &url]).await?;
        ensure!(done && said.contains("one") && said.contains("two"), "{said}");
        let (done, said) = flotilla(&["policy", "explain", "nginx", "--namespace", "cli", "--url", &url]).await?;
        ensure!(
            done && said.contains("docker.io/library/nginx:latest") && said.contains("warn: no rule approves it"),
            "{said}"
        );
        let changed = "name: one\nmode: warn\ndefault: approve\n";
        let changes = folder.path().join("changes.yaml").display().to_string();
        std::fs::write(&changes, changed)?;
        let (done, said) = flotilla(&["policy", "diff", "-f", &changes, "--url", &url]).await?;
        ensure!(done && said.contains("-mode: audit\n+mode: warn"), "{said}");
        let (_, said) = flotilla(&["policy", "apply", "-f", &changes, "--url", &url]).await?;
        let revision: u64 = said.trim().rsplit(' ').next().context("a revision")?.parse()?;
        let before = (revision - 1).to_string();
        let (done, said) = flotilla(&["policy", "diff", "one", "--from", &before, "--url", &url]).await?;
        ensure!(done && said.contains(&format!("--- one@{before}")) && said.contains("+mode: warn"), "{said}");
        for name in ["one", "two"] {
            let (done, said) = flotilla(&["policy", "delete", name, "--url", &url]).await?;
            ensure!(done, "{said}");
        }
        std::fs::write(&file, "name: one\nmode: audit\n")?;
        let (done, said) = flotilla(&["policy", "apply", "-f", &file, "--url", &url]).await?;
        ensure!(!done && said.contains("default"), "{said}");
        let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/admission");
        let junit = folder.path().join("report.xml").display().to_string();
        let (done, said) = flotilla(&["policy", "test", cases, "--junit", &junit]).await?;
        ensure!(done && said.contains(", 0 failed"), "{said}");
        ensure!(std::fs::read_to_string(&junit)?.contains("failures=\"0\""));
        Ok(())
    })
}
