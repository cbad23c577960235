"""Opens the dashboard of `tidegate demo` in a headless Chromium and holds it to what a user expects of it.

    pip install playwright && playwright install chromium     # or: CHROMIUM=/usr/bin/chromium
    cargo build
    python tests/dashboard/check.py [--binary target/debug/tidegate] [--shots DIR]

Checks: no message on the console, nothing asked of another host, an update within 1.5 s, a decision explained, keyboard, filter and
table, light and dark, no layout shift, a thousand pods. Prints one line per check; screenshots go to DIR. Exit code 1 if one fails.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys
import time

from playwright.sync_api import sync_playwright

FAILED = []


def check(what, is_so, detail=""):
    print(f"{'ok  ' if is_so else 'FAIL'} {what}{f': {detail}' if detail else ''}", flush=True)
    if not is_so:
        FAILED.append(what)


def until(what, is_so, seconds=60):
    """Polls: the page's policy forbids what playwright's own waiting for an expression needs."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.05)


class Demo:
    """A demonstration on free ports."""

    def __init__(self, binary, *args):
        command = [binary, "demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        greeting = ""
        while not (found := re.search(r"(http://\S+/dashboard)", greeting)):
            line = self.process.stdout.readline()
            assert line, "the demo ended"
            greeting += line
        self.url = found.group(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)

    def cpu_s(self, thread=None):
        """Of the process, or of one thread of it."""
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat")
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir() if thread else []:
            if (task / "comm").read_text().strip() == thread:
                stat = task / "stat"
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Page:
    """The dashboard in a window, with all that it said and asked for."""

    def __init__(self, browser, url, scheme="light", width=1440, height=1000):
        self.context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": height})
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.add_init_script(
            "window.shift = 0; window.worst = [0]; new PerformanceObserver((list) => { for (const entry of list.getEntries())"
            " if (!entry.hadRecentInput) { window.shift += entry.value; if (entry.value > window.worst[0]) window.worst = [entry.value,"
            " entry.startTime, ...entry.sources.map(({ node, previousRect: a, currentRect: b }) =>"
            " `${node?.id || node?.className || node?.nodeName} ${a.x},${a.y} -> ${b.x},${b.y}`)]; } })"
            ".observe({ type: 'layout-shift', buffered: true });"
        )
        self.page.goto(url)
        self.until_live()

    def until_live(self):
        until("live", lambda: self.text("#live") == "live", 20)

    def text(self, selector):
        return self.page.locator(selector).inner_text()

    def end(self, name, origin):
        check(f"{name}: nothing on the console", not self.said, "; ".join(self.said[:3]))
        check(f"{name}: nothing from elsewhere", all(url.startswith(origin) for url in self.asked), str(len(self.asked)))
        self.context.close()


def look_at_demo(browser, demo, shots, seconds):
    origin = demo.url.removesuffix("/dashboard")
    view = Page(browser, demo.url)
    page = view.page
    until("decisions", lambda: page.locator("#decisions tbody tr[data-id]").count() > 3)
    check("ready is shown", view.text("#ready") == "ready")
    began = time.monotonic()
    page.evaluate(
        "new Promise((done) => new MutationObserver(done).observe(document.querySelector('.chart path.s0'), { attributes: true }))"
    )
    took = time.monotonic() - began
    check("the page moves within 1.5 s", took < 1.5, f"{took:.2f} s")
    page.wait_for_timeout(seconds * 1_000)

    page.locator("#decisions tbody tr button").nth(3).click()
    page.wait_for_selector("#explained .candidate.chosen")
    check("a decision is explained", page.locator("#explained .candidate .stack i").count() > 0, view.text("#why-sum"))
    page.mouse.move(5, 5)
    page.wait_for_timeout(2_500)
    page.screenshot(path=shots / "light.png")
    shift = page.evaluate("window.shift")
    check("the layout stands still", shift < 0.02, f"{shift:.4f}, worst {page.evaluate('window.worst')}")

    page.locator(".tiles").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    check("pods are reached by keyboard", "pod-" in view.text("#pod-detail"), view.text("#pod-detail")[:60])
    page.locator("#filter").fill("pod-1")
    check("the filter filters", page.locator(".tile").count() == 1)
    page.locator("#filter").fill("")
    page.locator("#as-table").click()
    page.get_by_role("button", name="tokens").click()
    check("the table sorts", page.locator("th[aria-sort=descending]").count() == 1)
    page.screenshot(path=shots / "table.png")

    page.locator("#pause").click()
    page.wait_for_timeout(700)
    check("it can be paused", view.text("#live") == "paused")
    page.locator("#pause").click()
    view.until_live()
    page.locator("#theme").click()
    page.locator("#theme").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    view.end("light", origin)

    view = Page(browser, demo.url, "dark")
    check("dark is chosen by the system or by hand", view.page.evaluate("getComputedStyle(document.body).backgroundColor") == dark, dark)
    view.page.wait_for_timeout(3_000)
    view.page.locator("#decisions tbody tr button").nth(2).click()
    view.page.wait_for_selector("#explained .candidate.chosen")
    view.page.screenshot(path=shots / "dark.png")
    view.end("dark", origin)

    view = Page(browser, demo.url, "light", 420, 900)
    wide = view.page.evaluate("document.documentElement.scrollWidth")
    check("it fits a telephone", wide <= 420, f"{wide} px")
    view.page.screenshot(path=shots / "narrow.png", full_page=True)
    view.end("narrow", origin)


def look_at_two_pods(browser, demo, shots):
    view = Page(browser, demo.url)
    page = view.page
    until("a request on two pods", lambda: page.locator("#decisions tr", has_text="→").count() > 0)
    page.locator("#decisions tr", has_text="→").first.click()
    page.wait_for_selector("#explained .t-transfer")
    check("one pod against two is a picture", page.locator("#explained .candidate").count() >= 3)
    page.screenshot(path=shots / "two-pods.png")
    view.end("two pods", demo.url.removesuffix("/dashboard"))


def look_at_a_thousand(browser, demo, shots, count):
    view = Page(browser, demo.url, "dark")
    page = view.page
    until("all pods", lambda: page.locator(".tile").count() == count)
    page.wait_for_timeout(8_000)
    began, cpu_s, admin_s = time.monotonic(), demo.cpu_s(), demo.cpu_s("admin")
    sizes = page.evaluate(
        "new Promise((done) => { const sizes = []; const source = new EventSource('/dashboard/events');"
        " for (const name of ['whole', 'tick']) source.addEventListener(name, (event) => { sizes.push(event.data.length);"
        " if (sizes.length > 12) { source.close(); done(sizes); } }); })"
    )
    check("ticks are small", max(sizes[1:]) < 48_000, f"first {sizes[0]} bytes, then {sizes[1:]}")
    took = time.monotonic() - began
    share = (demo.cpu_s("admin") - admin_s) / took * 100
    print(f"     {count} pods, two viewers: the admin thread takes {share:.1f} % of a core, all {(demo.cpu_s() - cpu_s) / took * 100:.0f} %")
    frame = page.evaluate(
        "new Promise((done) => { let worst = 0, last = performance.now(), left = 150; const step = (now) => { worst = Math.max(worst,"
        " now - last); last = now; if (--left) requestAnimationFrame(step); else done(worst); }; requestAnimationFrame(step); })"
    )
    print(f"     longest frame in the browser: {frame:.0f} ms")
    page.screenshot(path=shots / "thousand.png")
    page.locator("#as-table").click()
    page.get_by_role("button", name="running").click()
    rows = page.locator("#pods tbody tr").count()
    check("the table draws what is in sight", 5 < rows < 60, f"{rows} rows")
    page.locator("#pods .scroll").evaluate("(element) => element.scrollTo(0, 1e6)")
    page.wait_for_timeout(1_500)
    page.screenshot(path=shots / "thousand-table.png")
    view.end("a thousand", demo.url.removesuffix("/dashboard"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", default="target/debug/tidegate")
    parser.add_argument("--shots", type=pathlib.Path, default=pathlib.Path("target/dashboard"))
    parser.add_argument("--pods", type=int, default=1_000)
    parser.add_argument("--seconds", type=int, default=20, help="of traffic before the first picture")
    args = parser.parse_args()
    args.shots.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=os.environ.get("CHROMIUM"))
        with Demo(args.binary, "--load", "4") as demo:
            look_at_demo(browser, demo, args.shots, args.seconds)
        with Demo(args.binary, "--pd", "--load", "2") as demo:
            look_at_two_pods(browser, demo, args.shots)
        with Demo(args.binary, "--pods", str(args.pods), "--load", "40") as demo:
            look_at_a_thousand(browser, demo, args.shots, args.pods)
        browser.close()
    print(f"{len(FAILED)} failed; pictures in {args.shots}")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
