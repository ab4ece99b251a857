//! The clients that people use, against a real cluster: an image of several layers goes to one node
//! and comes back from each, and its digest is the same everywhere. Then the same through a balancer
//! without affinity.
//!
//! Every client has stores and settings of its own in a temporary folder, so neither a user's images
//! nor a daemon that runs on this machine is touched. dockerd is our own as well; `ctr` talks to the
//! containerd that it runs.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use chaos_tests::balancer::Balancer;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::process::{self, Signal};
use chaos_tests::tools;
use chaos_tests::wait;
use tempfile::TempDir;
use tokio::sync::Mutex;

const IMAGE: &str = "localhost/flotilla-test:v1";
/// One layer that rides in the log, one file of usual size, one that takes several pieces.
const LAYERS_BYTES: [u64; 3] = [5_000, 300_000, 6 << 20];
/// What the balancer lets pass per second where a push is to be met on its way: the largest layer takes six seconds.
const SLOW_BYTES_PER_SECOND: u32 = 1 << 20;
const CALL_LIMIT: Duration = Duration::from_secs(120);
const DAEMON_START_LIMIT: Duration = Duration::from_secs(60);
const DAEMON_END_LIMIT: Duration = Duration::from_secs(20);
/// Debian keeps dockerd where the `PATH` of a plain user does not look.
const MORE_PATH: &str = ":/usr/local/sbin:/usr/sbin:/sbin";

/// Two daemons and two clusters at a time would only make both slow.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_pushes_to_one_node_and_pulls_from_all() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(Options::default()).await.expect("a cluster of three");
    let pulls = every_client(cluster.urls()).await;
    let pulls = cluster.judged(pulls).expect("every client gets back what it pushed");
    println!("{pulls} pulls, every digest as pushed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_pushes_and_pulls_through_a_balancer_without_affinity() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(Options::default()).await.expect("a cluster of three");
    let balancer = Balancer::start(&cluster.urls()).await.expect("a balancer");
    let pulls = every_client(vec![balancer.url.clone()]).await;
    let pulls = cluster.judged(pulls).expect("every client gets back what it pushed");
    println!("{pulls} pulls, every digest as pushed");
}

/// The leader is killed in the middle of each client's push, and nobody helps the client. Its requests go in turn to
/// the nodes that do not lead: what is on the dying node itself breaks off, and skopeo, for one, does not try again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pushes_of_clients_survive_the_death_of_the_leader() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(Options::default()).await.expect("a cluster of three");
    let result = pushes_beside_kills(&cluster).await;
    cluster.judged(result).expect("every client's push survives");
}

async fn pushes_beside_kills(cluster: &Cluster) -> anyhow::Result<()> {
    let Some(stores) = prepared(cluster).await? else { return Ok(()) };
    for client in ["skopeo", "podman", "buildah", "crane"] {
        let leader = cluster.leader().await?;
        let others: Vec<_> =
            cluster.nodes().iter().filter(|node| node.name != leader.name).map(|node| node.url.clone()).collect();
        let balancer = Balancer::start_slow(&others, SLOW_BYTES_PER_SECOND).await?;
        let (pushing, host) = (stores.clone(), host_of(&balancer.url));
        let push = tokio::task::spawn_blocking(move || pushing.push("killed", client, &host));
        // As soon as bytes are on their way to some node.
        upload_opens(cluster, || push.is_finished()).await?;
        leader.kill();
        push.await?.with_context(|| format!("{client}, {} killed", leader.name))?;
        leader.restart()?;
        cluster.wait_ready(Duration::from_secs(60)).await?;
        let pulling = stores.clone();
        tokio::task::spawn_blocking(move || pulling.pulled_alike("killed", client)).await??;
    }
    Ok(())
}

/// Its half of an upload stays behind and is in nobody's way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_that_was_interrupted_is_tried_again() {
    let _turn = ONE_AT_A_TIME.lock().await;
    let cluster = Cluster::start(Options::default()).await.expect("a cluster of three");
    let result = interrupted_pushes(&cluster).await;
    cluster.judged(result).expect("the second try succeeds");
}

async fn interrupted_pushes(cluster: &Cluster) -> anyhow::Result<()> {
    let Some(stores) = prepared(cluster).await? else { return Ok(()) };
    let slow = Balancer::start_slow(&cluster.urls(), SLOW_BYTES_PER_SECOND).await?;
    let balancer = Balancer::start(&cluster.urls()).await?;
    for client in ["skopeo", "podman", "buildah", "crane"] {
        let mut first = stores.begin(client, &push_arguments("interrupted", client, &host_of(&slow.url)))?;
        upload_opens(cluster, || false).await?;
        process::send(&mut first, Signal::Kill)?;
        ensure!(!first.wait()?.success(), "{client} was killed");
        let tag = cluster.client().get(&format!("/v2/interrupted/{client}/manifests/v1")).await?;
        tag.expect(&[404]).with_context(|| format!("{client}'s push did not end"))?;
        let (again, host) = (stores.clone(), host_of(&balancer.url));
        tokio::task::spawn_blocking(move || {
            again.push("interrupted", client, &host)?;
            again.pulled_alike("interrupted", client)
        })
        .await??;
    }
    Ok(())
}

/// An image, and where it lies for each client; nothing if clients are missing.
async fn prepared(cluster: &Cluster) -> anyhow::Result<Option<Arc<Stores>>> {
    let hosts = cluster.urls().iter().map(|url| host_of(url)).collect();
    let prepared = tokio::task::spawn_blocking(move || -> anyhow::Result<_> {
        if !present(&["buildah", "skopeo", "podman", "crane"])? {
            return Ok(None);
        }
        let stores = Stores::new(hosts)?;
        stores.build_image()?;
        stores.layout()?;
        Ok(Some(Arc::new(stores)))
    });
    prepared.await?
}

/// Waits until some node has an upload open, or the push is over.
async fn upload_opens(cluster: &Cluster, is_over: impl Fn() -> bool) -> anyhow::Result<()> {
    wait::until_ok(Duration::from_secs(60), "an upload is open", async || {
        let mut open = 0.0;
        for node in cluster.nodes() {
            open += cluster.metric(node, "flotilla_upload_sessions").await?;
        }
        ensure!(open > 0.0 || is_over(), "no upload is open");
        Ok(())
    })
    .await
}

/// How a client is told to push the image as `<folder>/<client>:v1`.
fn push_arguments(folder: &str, client: &str, host: &str) -> Vec<String> {
    let from = format!("containers-storage:{IMAGE}");
    let (first, prefix) = match client {
        "skopeo" => (&["copy", "--dest-tls-verify=false", &from][..], "docker://"),
        "crane" => (&["push", "--insecure", "crane"][..], ""),
        _ => (&["push", "--tls-verify=false", IMAGE][..], "docker://"),
    };
    let to = format!("{prefix}{host}/{folder}/{client}:v1");
    first.iter().map(|argument| (*argument).to_owned()).chain([to]).collect()
}

fn host_of(url: &str) -> String {
    url.trim_start_matches("http://").to_owned()
}

/// Runs each client that is installed; how many pulls were compared. The first URL takes the pushes.
async fn every_client(urls: Vec<String>) -> anyhow::Result<usize> {
    let hosts = urls.iter().map(|url| host_of(url)).collect();
    // Processes are waited for here, so that the balancer's tasks are not.
    tokio::task::spawn_blocking(move || {
        if !present(&["buildah"])? {
            return Ok(0);
        }
        let stores = Stores::new(hosts)?;
        stores.build_image()?;
        let mut pulls = 0;
        if present(&["skopeo"])? {
            pulls += stores.skopeo().context("skopeo")?;
        }
        if present(&["podman"])? {
            pulls += stores.podman().context("podman")?;
        }
        pulls += stores.buildah().context("buildah")?;
        if present(&["crane", "oras", "helm", "regctl", "cosign"])? {
            pulls += stores.crane().context("crane")?;
            pulls += stores.oras().context("oras")?;
            pulls += stores.helm().context("helm")?;
            // These two look at what crane pushed.
            pulls += stores.regctl().context("regctl")?;
            pulls += stores.cosign().context("cosign")?;
        }
        if present(&["docker", "dockerd", "containerd", "ctr", "skopeo"])? && may_run_a_daemon()? {
            pulls += stores.docker_and_ctr().context("docker")?;
        }
        Ok(pulls)
    })
    .await
    .context("the clients' thread")?
}

/// Whether these programs are installed. Says what is skipped; in CI nothing may be.
fn present(programs: &[&str]) -> anyhow::Result<bool> {
    let path = search_path();
    let found = |program: &&str| env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let missing: Vec<_> = programs.iter().copied().filter(|program| !found(program)).collect();
    if missing.is_empty() {
        return Ok(true);
    }
    skip(&format!("not installed: {}", missing.join(", ")))
}

fn may_run_a_daemon() -> anyhow::Result<bool> {
    let user = fs::metadata("/proc/self").context("/proc/self")?.uid();
    if user == 0 { Ok(true) } else { skip("docker and ctr: dockerd needs root") }
}

fn skip(reason: &str) -> anyhow::Result<bool> {
    ensure!(env::var_os("CI").is_none(), "in CI nothing is skipped; {reason}");
    println!("skipped: {reason}");
    Ok(false)
}

/// `make tools` puts those from the Go world beside the profiles' folders.
fn search_path() -> String {
    let tools = tools::folder().map_or_else(String::new, |tools| format!(":{}", tools.display()));
    env::var("PATH").unwrap_or_default() + MORE_PATH + &tools
}

/// Where the clients keep what they hold, and which registry they talk to.
struct Stores {
    home: TempDir,
    hosts: Vec<String>,
}

impl Stores {
    fn new(hosts: Vec<String>) -> anyhow::Result<Self> {
        let home =
            tempfile::Builder::new().prefix("flotilla-clients-").tempdir().context("a folder for the clients")?;
        let stores = Self { home, hosts };
        let root = stores.path("").display().to_string();
        let storage = format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{root}/store\"\nrunroot = \"{root}/run\"\n");
        fs::create_dir_all(stores.path(".config/containers"))?;
        fs::write(stores.path("storage.conf"), storage)?;
        fs::write(stores.path("registries.conf"), "unqualified-search-registries = []\n")?;
        // Found there by the clients themselves: not all of them have an option for it.
        let policy = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;
        fs::write(stores.path(".config/containers/policy.json"), policy)?;
        Ok(stores)
    }

    fn path(&self, below: &str) -> PathBuf {
        self.home.path().join(below)
    }

    fn command(&self, program: &str) -> Command {
        let home = self.home.path();
        let mut command = Command::new(program);
        command
            .current_dir(home)
            .env_clear()
            .env("PATH", search_path())
            .env("HOME", home)
            .env("XDG_RUNTIME_DIR", home)
            .env("TMPDIR", home)
            .env("BUILDAH_ISOLATION", "chroot")
            .env("COSIGN_PASSWORD", "only a test")
            .env("CONTAINERS_STORAGE_CONF", home.join("storage.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", home.join("registries.conf"))
            .stdin(Stdio::null());
        command
    }

    /// Starts a client; what it prints goes to files of the home folder.
    fn begin<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> anyhow::Result<Child> {
        let (out, err) = (File::create(self.path("stdout"))?, File::create(self.path("stderr"))?);
        let mut command = self.command(program);
        command.args(arguments).stdout(out).stderr(err);
        process::spawn(command).with_context(|| program.to_owned())
    }

    /// Runs a client to its end; what it printed.
    fn call(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let line = format!("{program} {}", arguments.join(" "));
        let (out, err) = (self.path("stdout"), self.path("stderr"));
        let mut child = self.begin(program, arguments)?;
        let status = end_of(&mut child, CALL_LIMIT)?;
        if status.is_none_or(|status| !status.success()) {
            process::send(&mut child, Signal::Kill)?;
            let ending = status.map_or(format!("no end after {CALL_LIMIT:?}"), |status| status.to_string());
            bail!("{line}: {ending}: {}{}", text_of(&err), text_of(&out));
        }
        Ok(text_of(&out).trim().to_owned())
    }

    /// An OCI image FROM scratch whose content nobody has seen before.
    fn build_image(&self) -> anyhow::Result<()> {
        fs::create_dir(self.path("context"))?;
        let mut recipe = "FROM scratch\n".to_owned();
        for (number, bytes) in LAYERS_BYTES.into_iter().enumerate() {
            let mut file = File::create(self.path(&format!("context/file{number}")))?;
            io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut file)?;
            recipe += &format!("COPY file{number} /data/file{number}\n");
        }
        recipe += "LABEL flotilla.test=true\nCMD [\"/none\"]\n";
        fs::write(self.path("context/Containerfile"), recipe)?;
        self.call("buildah", &["bud", "--layers", "--format", "oci", "-t", IMAGE, "context"])?;
        Ok(())
    }

    /// Options for a store that holds nothing: an image that is there already hides what the registry sent.
    fn empty(&self, name: &str) -> [String; 6] {
        let folder = |below: &str| self.path(name).join(below).display().to_string();
        ["--root".into(), folder("store"), "--runroot".into(), folder("run"), "--storage-driver".into(), "vfs".into()]
    }

    fn skopeo(&self) -> anyhow::Result<usize> {
        let (from, to) =
            (format!("containers-storage:{IMAGE}"), format!("docker://{}/clients/skopeo:v1", self.hosts[0]));
        self.call("skopeo", &["copy", "--dest-tls-verify=false", "--digestfile", "digest", &from, &to])?;
        let pushed = text_of(&self.path("digest"));
        for (number, host) in self.hosts.iter().enumerate() {
            let name = format!("docker://{host}/clients/skopeo:v1");
            let folder = format!("skopeo-{number}");
            self.call("skopeo", &["copy", "--src-tls-verify=false", &name, &format!("dir:{folder}")])?;
            let pulled = self.call("skopeo", &["manifest-digest", &format!("{folder}/manifest.json")])?;
            same(&pushed, &pulled, &name)?;
        }
        Ok(self.hosts.len())
    }

    fn podman(&self) -> anyhow::Result<usize> {
        let to = format!("docker://{}/clients/podman:v1", self.hosts[0]);
        self.call("podman", &["push", "--tls-verify=false", "--digestfile", "digest", IMAGE, &to])?;
        let pushed = text_of(&self.path("digest"));
        for (number, host) in self.hosts.iter().enumerate() {
            let name = format!("{host}/clients/podman:v1");
            let store = self.empty(&format!("podman-{number}"));
            self.call("podman", &with(&store, &["pull", "--tls-verify=false", &name]))?;
            let inspect = ["image", "inspect", "--format", "{{.Digest}}", &name];
            same(&pushed, &self.call("podman", &with(&store, &inspect))?, &name)?;
        }
        Ok(self.hosts.len())
    }

    fn buildah(&self) -> anyhow::Result<usize> {
        let to = format!("docker://{}/clients/buildah:v1", self.hosts[0]);
        self.call("buildah", &["push", "--tls-verify=false", "--digestfile", "digest", IMAGE, &to])?;
        let pushed = text_of(&self.path("digest"));
        for (number, host) in self.hosts.iter().enumerate() {
            let name = format!("{host}/clients/buildah:v1");
            let store = self.empty(&format!("buildah-{number}"));
            self.call("buildah", &with(&store, &["pull", "--tls-verify=false", &name]))?;
            let inspect = ["inspect", "--type", "image", "--format", "{{.FromImageDigest}}", &name];
            same(&pushed, &self.call("buildah", &with(&store, &inspect))?, &name)?;
        }
        Ok(self.hosts.len())
    }

    /// The image as a folder in the OCI layout, which crane reads.
    fn layout(&self) -> anyhow::Result<()> {
        self.call("skopeo", &["copy", &format!("containers-storage:{IMAGE}"), "oci-archive:crane.tar"])?;
        fs::create_dir_all(self.path("crane"))?;
        self.call("tar", &["-xf", "crane.tar", "-C", "crane"])?;
        Ok(())
    }

    fn push(&self, folder: &str, client: &str, host: &str) -> anyhow::Result<String> {
        let arguments = push_arguments(folder, client, host);
        self.call(client, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What a client pushed as `<folder>/<client>:v1` comes back whole from every node, under the same digest.
    fn pulled_alike(&self, folder: &str, client: &str) -> anyhow::Result<()> {
        let mut digests = Vec::new();
        for (number, host) in self.hosts.iter().enumerate() {
            let name = format!("docker://{host}/{folder}/{client}:v1");
            digests.push(self.call("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &name])?);
            // Fetches and hashes every layer.
            let to = format!("dir:{folder}-{client}-{number}");
            self.call("skopeo", &["copy", "--src-tls-verify=false", &name, &to])?;
        }
        digests.iter().try_for_each(|digest| same(&digests[0], digest, client))
    }

    fn crane(&self) -> anyhow::Result<usize> {
        let first = format!("{}/clients/crane:v1", self.hosts[0]);
        self.layout()?;
        let said = self.call("crane", &["push", "--insecure", "crane", &first])?;
        let pushed = digest_in(&said).context(said.clone())?.to_owned();
        for (number, host) in self.hosts.iter().enumerate() {
            let name = format!("{host}/clients/crane:v1");
            let folder = format!("crane-{number}");
            self.call("crane", &["pull", "--insecure", "--format", "oci", &name, &folder])?;
            let index = text_of(&self.path(&folder).join("index.json"));
            ensure!(index.contains(&pushed), "{name}: pulled {index}");
            same(&pushed, &self.call("crane", &["digest", "--insecure", &name])?, &name)?;
            // Mounts the layers, and moves no byte.
            let copy = format!("{host}/clients/crane-copy:v{number}");
            self.call("crane", &["copy", "--insecure", &name, &copy])?;
            same(&pushed, &self.call("crane", &["digest", "--insecure", &copy])?, &copy)?;
            let tags = self.call("crane", &["ls", "--insecure", &format!("{host}/clients/crane-copy")])?;
            ensure!(tags.lines().any(|tag| tag == format!("v{number}")), "{tags}");
        }
        let last = format!("{}/clients/crane-copy:v0", self.hosts[0]);
        self.call("crane", &["delete", "--insecure", &last])?;
        ensure!(self.call("crane", &["digest", "--insecure", &last]).is_err(), "{last} was deleted");
        Ok(2 * self.hosts.len())
    }

    fn oras(&self) -> anyhow::Result<usize> {
        let first = format!("{}/clients/oras:v1", self.hosts[0]);
        fs::write(self.path("artifact.txt"), "an artifact that no image is")?;
        fs::write(self.path("sbom.json"), "{}")?;
        let kind = "application/vnd.example.artifact";
        self.call("oras", &["push", "--plain-http", "--artifact-type", kind, &first, "artifact.txt:text/plain"])?;
        let pushed = self.call("oras", &["resolve", "--plain-http", &first])?;
        let attach = ["attach", "--plain-http", "--artifact-type", "application/vnd.example.sbom", &first];
        self.call("oras", &[&attach[..], &["sbom.json:application/json"]].concat())?;
        for (number, host) in self.hosts.iter().enumerate() {
            let name = format!("{host}/clients/oras:v1");
            same(&pushed, &self.call("oras", &["resolve", "--plain-http", &name])?, &name)?;
            let folder = format!("oras-{number}");
            self.call("oras", &["pull", "--plain-http", "-o", &folder, &name])?;
            let pulled = text_of(&self.path(&folder).join("artifact.txt"));
            ensure!(pulled == text_of(&self.path("artifact.txt")), "{name}: pulled {pulled:?}");
            let found = self.call("oras", &["discover", "--plain-http", "--format", "json", &name])?;
            ensure!(found.contains("application/vnd.example.sbom"), "{name}: {found}");
        }
        let old = self.call("oras", &["repo", "tags", "--plain-http", &format!("{}/clients/oras", self.hosts[0])])?;
        ensure!(old == "v1", "no tag of the old scheme is written where there is an API: {old}");
        Ok(self.hosts.len())
    }

    fn helm(&self) -> anyhow::Result<usize> {
        self.call("helm", &["create", "chart"])?;
        self.call("helm", &["package", "chart"])?;
        let package = fs::read(self.path("chart-0.1.0.tgz"))?;
        let to = format!("oci://{}/clients/charts", self.hosts[0]);
        self.call("helm", &["push", "--plain-http", "chart-0.1.0.tgz", &to])?;
        for (number, host) in self.hosts.iter().enumerate() {
            let (name, folder) = (format!("oci://{host}/clients/charts/chart"), format!("helm-{number}"));
            fs::create_dir(self.path(&folder))?;
            self.call("helm", &["pull", "--plain-http", "--version", "0.1.0", "-d", &folder, &name])?;
            let pulled = fs::read(self.path(&folder).join("chart-0.1.0.tgz"))?;
            ensure!(pulled == package, "{name}: another chart came back");
            println!("{name}: {} bytes", pulled.len());
        }
        Ok(self.hosts.len())
    }

    fn regctl(&self) -> anyhow::Result<usize> {
        for host in &self.hosts {
            self.call("regctl", &["registry", "set", "--tls", "disabled", host])?;
        }
        let image = |host: &str, tag: &str| format!("{host}/clients/regctl:{tag}");
        let (from, first) = (format!("{}/clients/crane:v1", self.hosts[0]), image(&self.hosts[0], "v1"));
        self.call("regctl", &["image", "copy", &from, &first])?;
        let pushed = self.call("regctl", &["image", "digest", &first])?;
        // An index of one platform, and a note about the image.
        self.call("regctl", &["index", "create", &image(&self.hosts[0], "multi"), "--ref", &first])?;
        fs::write(self.path("note.txt"), "a note")?;
        let kind = "application/vnd.example.note";
        self.call("regctl", &["artifact", "put", "--artifact-type", kind, "--subject", &first, "-f", "note.txt"])?;
        for (number, host) in self.hosts.iter().enumerate() {
            let name = image(host, "v1");
            same(&pushed, &self.call("regctl", &["image", "digest", &name])?, &name)?;
            let platform =
                ["manifest", "get", "--format", "{{range .Manifests}}{{.Digest}}{{end}}", &image(host, "multi")];
            same(&pushed, &self.call("regctl", &platform)?, "the index's child")?;
            let notes = self.call("regctl", &["artifact", "list", &name])?;
            ensure!(notes.contains(kind), "{name}: {notes}");
            // Reads every blob.
            self.call("regctl", &["image", "export", &name, &format!("regctl-{number}.tar")])?;
        }
        self.call("regctl", &["tag", "rm", &image(&self.hosts[0], "multi")])?;
        let tags = self.call("regctl", &["tag", "ls", &format!("{}/clients/regctl", self.hosts[0])])?;
        ensure!(tags == "v1", "{tags}");
        Ok(self.hosts.len())
    }

    fn cosign(&self) -> anyhow::Result<usize> {
        let pushed = self.call("crane", &["digest", "--insecure", &format!("{}/clients/crane:v1", self.hosts[0])])?;
        self.call("cosign", &["generate-key-pair"])?;
        let image = |host: &str| format!("{host}/clients/crane@{pushed}");
        // Nothing of it goes to a service elsewhere.
        let alone = ["--tlog-upload=false", "--use-signing-config=false", "--allow-http-registry", "--yes"];
        self.call("cosign", &[&["sign", "--key", "cosign.key"], &alone[..], &[&image(&self.hosts[0])]].concat())?;
        for host in &self.hosts {
            let verify = ["verify", "--key", "cosign.pub", "--insecure-ignore-tlog", "--allow-http-registry"];
            let said = self.call("cosign", &[&verify[..], &[&image(host)]].concat())?;
            ensure!(said.contains(&pushed), "{host}: {said}");
        }
        let tags = self.call("crane", &["ls", "--insecure", &format!("{}/clients/crane", self.hosts[0])])?;
        ensure!(tags == "v1", "a signature is found by its subject, without a tag: {tags}");
        Ok(self.hosts.len())
    }

    fn docker_and_ctr(&self) -> anyhow::Result<usize> {
        let daemon = Dockerd::start(self)?;
        let first = format!("{}/clients/docker:v1", self.hosts[0]);
        let archive = format!("docker-archive:image.tar:{first}");
        self.call("skopeo", &["copy", &format!("containers-storage:{IMAGE}"), &archive])?;
        daemon.docker(&["load", "-i", "image.tar"])?;
        let said = daemon.docker(&["push", &first])?;
        let pushed = digest_in(&said).context(said.clone())?;
        // Only the names and layers go; what a pull finds must come from the registry.
        daemon.docker(&["rmi", &first])?;
        for host in &self.hosts {
            let name = format!("{host}/clients/docker:v1");
            daemon.docker(&["pull", &name])?;
            let pulled = daemon.docker(&["image", "inspect", "--format", "{{index .RepoDigests 0}}", &name])?;
            same(pushed, digest_in(&pulled).context(pulled.clone())?, &name)?;
            daemon.docker(&["rmi", &name])?;

            daemon.ctr(&["pull", "--plain-http", "--snapshotter", "native", &name])?;
            let listed = daemon.ctr(&["ls", &format!("name=={name}")])?;
            same(pushed, digest_in(&listed).context(listed.clone())?, &format!("ctr {name}"))?;
            daemon.ctr(&["rm", "--sync", &name])?;
        }
        Ok(2 * self.hosts.len())
    }
}

/// A docker daemon on a private socket, without a bridge and without firewall rules. It runs a
/// containerd of its own.
struct Dockerd<'a> {
    stores: &'a Stores,
    process: Child,
    socket: String,
}

impl<'a> Dockerd<'a> {
    fn start(stores: &'a Stores) -> anyhow::Result<Self> {
        let folder = stores.path("docker");
        fs::create_dir(&folder)?;
        let below = |name: &str| folder.join(name).display().to_string();
        let socket = format!("unix://{}", below("docker.sock"));
        let log = File::create(folder.join("log"))?;
        let mut command = stores.command("dockerd");
        command
            .args(["--host", &socket, "--data-root", &below("data"), "--exec-root", &below("exec")])
            .args(["--pidfile", &below("pid"), "--storage-driver=vfs", "--bridge=none"])
            .args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"])
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = process::spawn(command).context("dockerd")?;
        let mut daemon = Self { stores, process, socket };
        let began = Instant::now();
        while let Err(reason) = daemon.docker(&["version"]) {
            let ended = daemon.process.try_wait()?;
            if ended.is_some() || began.elapsed() > DAEMON_START_LIMIT {
                let log = text_of(&folder.join("log"));
                return Err(reason.context(format!("dockerd does not start ({ended:?}): {log}")));
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(daemon)
    }

    fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.stores.call("docker", &with(&["-H".to_owned(), self.socket.clone()], arguments))
    }

    fn ctr(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let socket = self.stores.path("docker/exec/containerd/containerd.sock").display().to_string();
        let options = ["-a", &socket, "-n", "flotilla", "images"].map(str::to_owned);
        self.stores.call("ctr", &with(&options, arguments))
    }
}

impl Drop for Dockerd<'_> {
    fn drop(&mut self) {
        // Asked first: killed at once it would leave mounts behind. Errors mean that it is gone already.
        let _ = process::send(&mut self.process, Signal::Terminate);
        if !matches!(end_of(&mut self.process, DAEMON_END_LIMIT), Ok(Some(_))) {
            let _ = process::send(&mut self.process, Signal::Kill);
            let _ = self.process.wait();
        }
    }
}

/// How the process ended; `None` if it still runs after that time.
fn end_of(child: &mut Child, within: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let began = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || began.elapsed() > within {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn same(pushed: &str, pulled: &str, name: &str) -> anyhow::Result<()> {
    ensure!(pushed.starts_with("sha256:"), "no digest of what was pushed: {pushed:?}");
    ensure!(pushed == pulled, "{name}: pushed {pushed}, pulled {pulled}");
    println!("{name}: {pulled}");
    Ok(())
}

/// The first digest in what a client printed.
fn digest_in(text: &str) -> Option<&str> {
    let start = text.find("sha256:")?;
    text.get(start..start + "sha256:".len() + 64)
}

fn with<'a>(options: &'a [String], arguments: &[&'a str]) -> Vec<&'a str> {
    options.iter().map(String::as_str).chain(arguments.iter().copied()).collect()
}

fn text_of(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
