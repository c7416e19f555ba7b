use proptest::prelude::*;

use super::super::Disk;
use super::super::tests::{ROOT, ext4};
use super::*;

/// What is started on a root with this grub.cfg and these files.
fn started(config: &str, files: &[(&str, &str)]) -> Disk {
    let config = config.replace("ROOT", ROOT);
    let mut all = vec![("/boot/grub/grub.cfg", config.as_str())];
    all.extend_from_slice(files);
    Disk::read(Box::new(ext4(&all)))
}

fn default(config: &str, files: &[(&str, &str)]) -> (String, String, String) {
    let disk = started(config, files);
    let entry = disk.default_entry().unwrap();
    let kernel = entry.kernel().unwrap();
    (entry.title.clone(), kernel, entry.cmdline.clone())
}

/// In the shape that grub-mkconfig writes.
const MENU: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function gfxmode {
  set gfxpayload="${1}"
}
function savedefault {
  if [ -z "${boot_once}" ]; then
    saved_entry="${chosen}"
    save_env saved_entry
  fi
}
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
else
  insmod ext2
fi
if loadfont $font ; then
  terminal_output gfxterm
fi
menuentry 'GNU/Linux' --class gnu-linux $menuentry_id_option 'simple' {
	savedefault
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root --hint-bios=hd7,gpt9 ROOT
	echo	'Loading ...'
	linux	/boot/vmlinuz-2 root=UUID=ROOT ro  quiet "dyndbg=file a +p"
	initrd	/boot/initrd.img-2
}
submenu 'Advanced options' $menuentry_id_option 'advanced' {
	menuentry 'with 2' --class x $menuentry_id_option 'two' {
		search --fs-uuid --set root ROOT
		linux	/boot/vmlinuz-2 two
	}
	menuentry "with 1" --class x $menuentry_id_option 'one' {
		search.fs_label root root
		linux	($root)/boot/vmlinuz-1 one $chosen
	}
}
menuentry 'UEFI Firmware Settings' {
	fwsetup
}
"#;

fn env(line: &str) -> String {
    let text = format!("# GRUB Environment Block\n{line}\n");
    format!("{text:#<1024}")
}

#[test]
fn the_default_is_what_the_configuration_and_grubenv_say() {
    let (two, one) = ("/boot/vmlinuz-2", "/boot/vmlinuz-1");
    let simple = format!("root=UUID={ROOT} ro quiet \"dyndbg=file a +p\"");
    for (line, want) in [
        ("", ("GNU/Linux", two, simple.as_str())),
        ("saved_entry=simple", ("GNU/Linux", two, &simple)),
        ("saved_entry=advanced>one", ("with 1", one, "one with 1")),
        ("saved_entry=1>0", ("with 2", two, "two")),
        (
            "saved_entry=Advanced options>with 1",
            ("with 1", one, "one with 1"),
        ),
        ("saved_entry=1", ("with 2", two, "two")),
        ("saved_entry=gone>away", ("GNU/Linux", two, &simple)),
        (
            "saved_entry=simple\nnext_entry=1>one",
            ("with 1", one, "one with 1"),
        ),
    ] {
        let (title, kernel, cmdline) = default(MENU, &[("/boot/grub/grubenv", &env(line))]);
        assert_eq!(
            (title.as_str(), kernel.as_str(), cmdline.as_str()),
            want,
            "{line}"
        );
    }
    let disk = started(MENU, &[]);
    let titles: Vec<_> = disk.entries.iter().map(|e| e.title.as_str()).collect();
    assert_eq!(
        titles,
        ["GNU/Linux", "with 2", "with 1", "UEFI Firmware Settings"]
    );
}

#[test]
fn what_starts_no_kernel_or_something_else_is_said() {
    for (body, said) in [
        ("fwsetup", "`x` starts no Linux kernel"),
        ("chainloader +1", "`x`: starts another boot loader"),
        ("multiboot2 /xen", "`x`: starts a hypervisor"),
        (
            "set root=hd3; linux /a",
            "`x`: its kernel /a is on no partition of this disk",
        ),
        ("while true; do true; done", "`x`: its script does not end"),
    ] {
        let disk = started(&format!("menuentry x {{ {body} }}"), &[]);
        let error = disk.default_entry().unwrap_err().to_string();
        assert!(error.ends_with(said), "{error}");
    }
    let nothing = started("if true; then\n", &[]);
    let error = nothing.default_entry().unwrap_err().to_string();
    assert!(
        error.contains("grub.cfg:1: the file ends within a block"),
        "{error}"
    );
}

#[test]
fn entries_of_type_1_are_fedora_s_menu() {
    let config = "load_env -f $prefix/grubenv\nset default=\"${saved_entry}\"\nset kernelopts=\"ro quiet\"\n\
                  insmod blscfg\nblscfg\n";
    let entry = |version: &str| {
        format!(
            "title Fedora ({version})\nversion {version}\nlinux /boot/vmlinuz-{version}\n\
             initrd /boot/initramfs-{version}.img $tuned_initrd\noptions root=UUID={ROOT} $kernelopts\n"
        )
    };
    let (old, new) = (entry("6.9"), entry("6.10"));
    let files = [
        ("/boot/loader/entries/m-6.9.conf", old.as_str()),
        ("/boot/loader/entries/m-6.10.conf", &new),
    ];
    let newest = started(config, &files);
    let entry = newest.default_entry().unwrap();
    assert_eq!(entry.id, "m-6.10");
    assert_eq!(entry.cmdline, format!("root=UUID={ROOT} ro quiet"));
    assert_eq!(entry.initrd(), ["/boot/initramfs-6.10.img"]);
    let saved = env("saved_entry=m-6.9");
    let mut with = files.to_vec();
    with.push(("/boot/grub/grubenv", &saved));
    assert_eq!(started(config, &with).default_entry().unwrap().id, "m-6.9");
}

#[test]
fn words_conditions_loops_functions_and_files_are_as_in_grub() {
    let config = r#"
# a comment; set a=wrong
set a="x y"; set b="$a"'z w'"\$a \"q\"" # words
if ! [ -z "$none" ]; then set c=wrong; fi
if test 2 -gt 10 -o \( "$a" = "x y" -a ! -e /none \); then set c=right; elif true; then set c=wrong; fi
for i in 1 2 3; do set d=$d$i; done
until [ "$e" = ooo ]; do e=o$e; done
function both { set f="$1-$2-$#"; return; }
both one "two three"
source /boot/grub/more.cfg
if [ -f /boot/grub/more.cfg -a -d /boot -a -s /boot/grub/more.cfg ]; then set g=files; fi
menuentry 'it'"'s one" --id=i {
    linux /k \
        $a "$a" $c $d $e "$f" $g $h '${a}' $b
}
"#;
    let (title, _, cmdline) = default(config, &[("/boot/grub/more.cfg", "h=more\n")]);
    assert_eq!(title, "it's one");
    assert_eq!(
        cmdline,
        "x y \"x y\" right 123 ooo \"one-two three-2\" files more ${a} x yz w$a \"q\""
    );
}

#[test]
fn a_script_that_grows_or_calls_itself_for_ever_is_ended() {
    for config in [
        "function f { f; }\nf\n",
        "source /boot/grub/grub.cfg\n",
        "set a=xxxxxxxxxxxxxxxx; while true; do set a=$a$a; done\n",
        "while true; do set i=x$i; set v$i=1; done\n",
        "while true; do menuentry a { true; }; done\n",
    ] {
        let disk = started(config, &[]);
        assert!(disk.default_entry().is_err());
    }
}

proptest! {
    #[test]
    fn no_script_makes_the_reader_panic(
        words in prop::collection::vec(
            prop_oneof![
                prop::sample::select(vec![
                    "if", "then", "else", "fi", "while", "do", "done", "for", "in", "function",
                    "{", "}", "menuentry", "submenu", "set", "a=b", "$a", "${a}", "\"$a b\"", "[",
                    "]", "linux", "/k", "initrd", "search", "--set=root", "--file", "load_env",
                    "source", "blscfg", "test", "!", "=", ";", "\n", "default=0>1", "'", "\"", "\\", "#",
                ]).prop_map(str::to_owned),
                "\\PC{0,4}",
            ],
            0..60,
        ),
    ) {
        let text = words.join(" ");
        if let Ok(script) = script::parse(&text) {
            let mut shell = Shell::new(&[], 0, "/boot/grub/grub.cfg");
            let _ = shell.run(&script);
        }
        let _ = menu(&[], 0, "/grub.cfg", &text);
    }
}
