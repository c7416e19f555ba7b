//! The order in which everything happens: the parts of user-data and vendor-data, then the modules
//! of cloud-init's three lists.

use std::fs;
use std::path::Path;

use super::command::Program;
use super::context::Context;
use super::instance::{Frequency, Instance};
use super::merge::How;
use super::parts::{self, Kind, Part};
use super::report::Report;
use super::{STATE, ahead, files, instance_data, jinja, modules};
use crate::accounts::Accounts;
use crate::http;
use crate::os::Os;
use crate::seed::{MAX_FILE, Seed};
use crate::yaml::{self, Node, Value};

/// Shown of parts that are of no known kind.
const SHOWN: usize = 40;

/// Does it all.
pub fn run(seed: &Seed, base: &Node, report: &Report) {
    report.stage("init-local");
    let instance = match Instance::open(Path::new(STATE), seed) {
        Ok(instance) => instance,
        Err(error) => {
            report.failed("user-data", &format!("{STATE}: {error}"));
            return report.finish(&datasource(seed));
        }
    };
    let os = Os::of_this_root();
    let data = instance_data::of(seed, &os);
    if let Err(error) = instance_data::write(&data) {
        report.failed("instance-data", &error.to_string());
    }
    report.stage("init");
    let mut consumer = Consumer {
        seed,
        instance: &instance,
        report,
        variables: instance_data::variables(&data),
        base,
    };
    let user = consumer.consume("user-data", &seed.user_data, &Whose::USER);
    let vendor = consumer.vendor(&user);
    consumer.refuse(&user);
    consumer.refuse(&vendor);
    let how = How::sources();
    let config = how.merge(how.merge(user, vendor), base.clone());
    if ["bootcmd", "runcmd"]
        .iter()
        .any(|key| config.get(key).is_some())
    {
        ahead::shell();
    }
    let mut context = Context {
        config,
        seed,
        instance: &instance,
        report,
        os,
        accounts: Accounts::of_this_root(),
        nodename: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    };
    // Before any command of the user's, who may ask for it.
    if let Err(why) = modules::hostname::early(&context) {
        report.failed("set_hostname", &why);
    }
    for (list, stage) in [
        ("cloud_init_modules", "init"),
        ("cloud_config_modules", "modules-config"),
        ("cloud_final_modules", "modules-final"),
    ] {
        if stage != "init" {
            report.stage(stage);
        }
        run_list(list, &mut context);
    }
    context.label();
    report.finish(&datasource(seed));
    if let Err(why) = modules::power_state::end(&context) {
        report.failed("power_state_change", &why);
    }
}

fn datasource(seed: &Seed) -> String {
    let class = match seed.cloud {
        "configdrive" => "DataSourceConfigDrive",
        _ => "DataSourceNoCloud",
    };
    format!("{class} [seed={}][dsmode=net]", seed.origin)
}

/// The modules of a list: names, `[NAME, FREQUENCY]`, or mappings that say the same.
fn run_list(list: &str, context: &mut Context) {
    let Some(items) = context.get(list).and_then(Node::list).map(<[Node]>::to_vec) else {
        return;
    };
    for item in &items {
        let words = match &item.value {
            Value::List(words) => words.iter().filter_map(Node::scalar).collect(),
            Value::Map(_) => ["name", "frequency"]
                .iter()
                .filter_map(|key| item.get(key)?.scalar())
                .collect(),
            _ => item.scalars(),
        };
        let Some(name) = words.first() else {
            context.failed(list, &item.wrong("", "an item without a name"));
            continue;
        };
        let name = name.replace('-', "_");
        let name = name.strip_prefix("cc_").unwrap_or(&name);
        let frequency = words.get(1).map(|word| Frequency::parse(word));
        if frequency == Some(None) {
            let why = format!("{name}: the frequency is always, once-per-instance or once");
            context.failed(list, &item.wrong("", why));
            continue;
        }
        // It may have a program that reads what was written before.
        context.label();
        run_module(name, frequency.flatten(), context);
    }
}

fn run_module(name: &str, frequency: Option<Frequency>, context: &Context) {
    let Some(module) = modules::find(name, &context.os) else {
        return;
    };
    if !module.is_asked_for(context) {
        return;
    }
    let frequency = frequency.unwrap_or(module.frequency);
    let done = context
        .instance
        .run(&format!("config_{name}"), frequency, || {
            if let Err(why) = (module.run)(context) {
                context.failed(name, &why);
            }
        });
    if let Err(error) = done {
        context.failed(name, &error.to_string());
    }
}

/// Whose data it is: where scripts and configuration of it are kept.
struct Whose {
    scripts: &'static str,
    config: &'static str,
}

impl Whose {
    const USER: Self = Self {
        scripts: "scripts",
        config: "cloud-config.txt",
    };
    const VENDOR: Self = Self {
        scripts: "scripts/vendor",
        config: "vendor-cloud-config.txt",
    };
}

struct Consumer<'a> {
    seed: &'a Seed,
    instance: &'a Instance,
    report: &'a Report,
    variables: serde_json::Value,
    base: &'a Node,
}

impl Consumer<'_> {
    /// The vendor's, unless the user or the disk does without.
    fn vendor(&mut self, user: &Node) -> Node {
        if self.seed.vendor_data.is_empty() {
            return Node::empty();
        }
        let config = How::sources().merge(user.clone(), self.base.clone());
        let enabled = config.at(&["vendor_data", "enabled"]);
        if !enabled.is_some_and(Node::is_true) {
            return Node::empty();
        }
        self.consume("vendor-data", &self.seed.vendor_data, &Whose::VENDOR)
    }

    /// Does what the parts say that is done at once, and gives the configuration in them.
    fn consume(&mut self, file: &str, data: &[u8], whose: &Whose) -> Node {
        let mut errors = Vec::new();
        let parts = parts::unpack(
            file,
            data,
            &|address, once| self.fetch(address, once),
            &mut errors,
        );
        for why in &errors {
            self.report.failed(file, why);
        }
        let index = self
            .seed
            .meta_data
            .get("launch-index")
            .and_then(Node::scalar);
        let index = index.and_then(|text| text.parse::<i64>().ok());
        let mut config = Node::empty();
        for part in parts {
            let other = |wanted: i64| index.is_some_and(|index| index != wanted);
            if part.launch_index.is_some_and(other) {
                continue;
            }
            if let Err(why) = self.part(&part, whose, &mut config) {
                self.report.failed(file, &why);
            }
        }
        let mut text = "#cloud-config\n\n".to_owned();
        text.push_str(&yaml::write(&config));
        let kept = files::write(&self.instance.path(whose.config), text.as_bytes(), 0o600);
        if let Err(error) = kept {
            self.report
                .failed(file, &format!("{}: {error}", whose.config));
        }
        config
    }

    fn part(&self, part: &Part, whose: &Whose, config: &mut Node) -> Result<(), String> {
        match &part.kind {
            Kind::Script => self.place(part, &self.instance.path(whose.scripts)),
            Kind::ScriptPerBoot => self.place(part, &self.instance.shared("scripts/per-boot")),
            Kind::ScriptPerInstance => {
                self.place(part, &self.instance.shared("scripts/per-instance"))
            }
            Kind::ScriptPerOnce => self.place(part, &self.instance.shared("scripts/per-once")),
            Kind::Boothook => self.boothook(part),
            Kind::Config => merge_config(part, config),
            Kind::Patch => patch_config(part, config),
            Kind::Jinja => self.template(part, whose, config),
            Kind::PartHandler => Err(format!(
                "{}: #part-handler is Python, which this agent does not run",
                part.place
            )),
            // Nothing would have been done with it.
            Kind::Archive | Kind::Include => Ok(()),
            Kind::Other(kind) => unknown(part, kind),
        }
    }

    fn place(&self, part: &Part, folder: &Path) -> Result<(), String> {
        let path = folder.join(files::clean_name(&part.name));
        let script = files::without_returns(&part.content);
        ahead::script(&script);
        files::write(&path, &script, 0o700).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn boothook(&self, part: &Part) -> Result<(), String> {
        let path = self
            .instance
            .path("boothooks")
            .join(files::clean_name(&part.name));
        let text = files::without_returns(&part.content);
        let text = text.strip_prefix(b"#cloud-boothook").unwrap_or(&text);
        files::write(&path, text.trim_ascii_start(), 0o700)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        self.instance.settle();
        Program::new(&[&path])
            .env("INSTANCE_ID", &self.seed.instance_id)
            .run()
            .map_err(|why| format!("boothook {}: {why}", part.place))
    }

    fn template(&self, part: &Part, whose: &Whose, config: &mut Node) -> Result<(), String> {
        let text = String::from_utf8_lossy(&part.content);
        let text = text.trim_start();
        let (text, missing) = jinja::render(&part.place, text, &self.variables)?;
        let kind = Kind::by_header(text.as_bytes());
        if !matches!(
            kind,
            Some(Kind::Script | Kind::Config | Kind::Boothook | Kind::Patch)
        ) {
            let kind = format!(
                "{}: a template of something that templates are not for",
                part.place
            );
            return Err(kind);
        }
        let rendered = Part {
            kind: kind.unwrap_or(Kind::Script),
            content: text.into_bytes(),
            ..part.clone()
        };
        self.part(&rendered, whose, config)?;
        if !missing.is_empty() {
            let names = missing.join(", ");
            let place = &part.place;
            let why = format!("{place}: the template asks for what is not known: {names}");
            self.report.warned(&why);
        }
        Ok(())
    }

    /// What an address holds; with `once` the instance keeps it.
    fn fetch(&self, address: &str, once: bool) -> Result<Vec<u8>, String> {
        let kept = self
            .instance
            .path("data/urlcache")
            .join(files::clean_name(address));
        if once && let Ok(bytes) = fs::read(&kept) {
            return Ok(bytes);
        }
        let local = address.strip_prefix("file://");
        let bytes = match local.or_else(|| address.starts_with('/').then_some(address)) {
            Some(path) => fs::read(path).map_err(|error| error.to_string())?,
            None => http::get(address, MAX_FILE)?,
        };
        if once {
            files::write(&kept, &bytes, 0o600).map_err(|error| error.to_string())?;
        }
        Ok(bytes)
    }

    /// Names what a configuration asks for that no module here does.
    fn refuse(&self, config: &Node) {
        for odd in modules::odd_keys(config) {
            match odd.module {
                Some(module) => self.report.failed(module, &odd.why),
                None => self.report.warned(&odd.why),
            }
        }
    }
}

fn merge_config(part: &Part, config: &mut Node) -> Result<(), String> {
    let text = String::from_utf8_lossy(&part.content);
    let mut node = yaml::read(&part.place, &text)?;
    if node.value == Value::Null {
        return Ok(());
    }
    if node.map().is_none() {
        return Err(node.wrong(
            "",
            format!("#cloud-config is a mapping, not {}", node.kind()),
        ));
    }
    let own = How::take(&mut node)?;
    let header = || How::parse(part.merge.as_deref().unwrap_or_default());
    let how = match own {
        Some(how) => how,
        None => header()
            .map_err(|why| format!("{}: Merge-Type: {why}", part.place))?
            .unwrap_or_else(How::parts),
    };
    *config = how.merge(std::mem::take(config), node);
    Ok(())
}

/// RFC 6902, on the configuration so far.
fn patch_config(part: &Part, config: &mut Node) -> Result<(), String> {
    let wrong = |why: &str| format!("{}: {why}", part.place);
    let text = String::from_utf8_lossy(&part.content);
    let text = text.trim_start().strip_prefix("#cloud-config-jsonp");
    let list = yaml::read(&part.place, text.unwrap_or_default())?;
    let operations = list.list().ok_or_else(|| wrong("a patch is a list"))?;
    let mut patched = config.clone();
    for operation in operations {
        modules::patch::apply(operation, &mut patched).map_err(|why| operation.wrong("", why))?;
    }
    *config = patched;
    Ok(())
}

fn unknown(part: &Part, kind: &str) -> Result<(), String> {
    let start = String::from_utf8_lossy(&part.content).trim().to_owned();
    if start.is_empty() {
        return Ok(());
    }
    let start: String = start
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(SHOWN)
        .collect();
    Err(format!(
        "{}: it begins with {start:?} and is {kind}: begin it with #cloud-config or #!",
        part.place
    ))
}
