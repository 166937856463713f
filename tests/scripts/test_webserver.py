"""Dagster's server as `make dev` starts it: other sites read and start nothing, its own pages go on working."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest
from dagster_graphql import DagsterGraphQLClient
from playwright.sync_api import Browser, expect, sync_playwright

from image_assets.images.charts import picture_markdown
from resources.pictures import FOLDER, linked, with_picture_files
from resources.web_protection import HANDSHAKE, accepted_from_other_sites
from scripts.dev import FORMS, HOST, WEBSERVER, Service, is_up, start, stop
from tests.support.images import png
from tests.support.receivers import Quiet, serving
from tests.support.served import free_port, wait_for

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
JOB = """
    import dagster as dg


    @dg.op
    def nothing():
        print("a line of the log")


    @dg.job
    def harmless():
        nothing()


    @dg.asset
    def shells():
        pass


    defs = dg.Definitions([shells], jobs=[harmless])
"""
SELECTOR = '{repositoryLocationName:"jobs.py",repositoryName:"__repository__",pipelineName:"harmless"}'
LOADED = f"{{pipelineOrError(params:{SELECTOR}){{__typename}}}}"
LAUNCH = f"mutation{{launchRun(executionParams:{{selector:{SELECTOR}}}){{__typename}}}}"
READ = "{version}"
# What a page of another site can try, and what each attempt came to: `refused` by the browser or by the server.
ATTACK = """<!doctype html><iframe name="result"></iframe>
<form method="post" enctype="text/plain" target="result" action="TARGET/graphql?query=LAUNCH"><input name="a"></form>
<script>
const attempt = (name, trying) => new Promise(done => {
    setTimeout(() => done([name, "refused"]), 5000);
    trying(came => done([name, came]));
});
const image = (done, url) => { const one = new Image(); one.onerror = () => done("refused");
                               one.onload = () => done("shown"); one.src = url; };
const get = url => fetch(url, {credentials: "include"}).then(response => response.text());
window.attempts = Promise.all([
    attempt("form", done => { document.forms[0].submit(); setTimeout(() => done("refused"), 2000); }),
    attempt("image", done => image(done, "TARGET/graphql?query=LAUNCH")),
    attempt("picture of the page", done => image(done, "TARGET/favicon.png")),
    attempt("post", done => fetch("TARGET/graphql?query=LAUNCH", {method: "POST", mode: "no-cors", body: "x"})
                            .then(() => setTimeout(() => done("refused"), 1000), () => done("refused"))),
    attempt("read", done => get("TARGET/graphql?query=%7Bversion%7D").then(done, () => done("refused"))),
    attempt("server_info", done => get("TARGET/server_info").then(done, () => done("refused"))),
    attempt("socket", done => { const one = new WebSocket("TARGET/graphql".replace("http", "ws"), "graphql-ws");
                                one.onerror = () => done("refused"); one.onopen = () => done("opened"); }),
]).then(Object.fromEntries);
</script>"""


@dataclass(frozen=True)
class Webserver:
    """A running server."""

    port: int
    instance: dg.DagsterInstance
    home: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def send(self, method: str, path: str, body: str = "", **headers: str) -> tuple[int, str]:
        """Status and text of a response; `Host` and `Origin` are sent as given, underscores as dashes."""
        connection = HTTPConnection(HOST, self.port, timeout=30)
        connection.request(method, path, body or None, {name.replace("_", "-"): of for name, of in headers.items()})
        response = connection.getresponse()
        text = "" if response.status == 101 else response.read().decode(errors="replace")
        assert response.headers["Access-Control-Allow-Origin"] is None
        connection.close()
        return response.status, text

    def post(self, query: str) -> str:
        """The response to a query that one of its own pages sends."""
        own = {"Origin": self.url, "Sec_Fetch_Site": "same-origin", "Content_Type": "application/json"}
        return self.send("POST", "/graphql", json.dumps({"query": query}), **own)[1]

    def socket(self, **headers: str) -> int:
        """The status of a WebSocket's handshake."""
        return self.send("GET", "/graphql", **HANDSHAKE, Sec_WebSocket_Protocol="graphql-ws", **headers)[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webserver]:
    """A server of one job. No daemon runs, so that launched runs stay queued."""
    folder = tmp_path_factory.mktemp("webserver")
    (folder / "jobs.py").write_text("\n".join(line[4:] for line in JOB.splitlines()))
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
    port = free_port()
    command = [*WEBSERVER, "-h", HOST, "-p", port, "-f", str(folder / "jobs.py")]
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        # Creates the databases: two processes that do so at once break them.
        assert (instance.get_runs_count(), list(instance.all_instigator_state()), instance.get_asset_keys()) == (
            0,
            [],
            [],
        )
        environment = {**os.environ, "DAGSTER_HOME": str(folder), "IMAGE_ASSETS_HOME": str(folder)}
        process = start(Service("dagster", command), environment)
        try:
            server = Webserver(int(port), instance, folder)
            wait_for(lambda: is_up(f"{server.url}/server_info"), "Dagster's server", folder / "dagster.yaml")
            wait_for(lambda: '"Pipeline"' in server.post(LOADED), "the job", folder / "dagster.yaml")
            yield server
        finally:
            stop([process])


@pytest.fixture
def launching() -> None:
    """Used by a test that launches runs."""


@pytest.fixture(autouse=True)
def nothing_is_launched(server: Webserver, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that left a run, except for one that launches runs."""
    before = server.instance.get_runs_count()
    yield
    if "launching" not in request.fixturenames:
        assert server.instance.get_runs_count() == before


def test_a_mutation_by_get_is_rejected(server: Webserver) -> None:
    path, own = f"/graphql?query={quote(LAUNCH)}", server.url
    foreign = {"Origin": "http://evil.com", "Sec_Fetch_Site": "cross-site", "Accept": "image/*"}
    assert server.send("GET", path, **foreign)[0] == 403
    # An image in a page has no origin; links are followed without one.
    assert server.send("GET", path, Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="image")[0] == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    for headers in ({}, link, {"Origin": own}, {"Accept": "text/html"}):
        for place in (path, path.replace("/graphql", "/graphql/"), path.replace("/graphql", "/%67raphql")):
            assert server.send("GET", place, **headers)[0] in (404, 405)


@pytest.mark.parametrize("host", ["evil.com", "evil.com:3000", "127.0.0.1.evil.com", "0.0.0.0", "10.0.0.1"])
def test_other_host_names_are_rejected(server: Webserver, host: str) -> None:
    assert server.send("GET", "/server_info", Host=host)[0] == 400
    post = {"Origin": f"http://{host}", "Content_Type": "application/json"}
    assert server.send("POST", "/graphql", json.dumps({"query": READ}), Host=host, **post)[0] == 400
    assert server.socket(Host=host, Origin=f"http://{host}") == 400


@pytest.mark.parametrize("origin", ["http://evil.com", "null", "http://127.0.0.1:1", "http://localhost", ""])
def test_forms_and_sockets_of_other_origins_are_rejected(server: Webserver, origin: str) -> None:
    headers = {"Origin": origin} if origin else {}
    assert server.send("POST", f"/graphql?query={quote(LAUNCH)}", "a=b", Content_Type="text/plain", **headers)[0] == 403
    body = json.dumps({"query": LAUNCH})
    assert server.send("POST", "/graphql", body, Content_Type="application/json", **headers)[0] == 403
    assert server.send("POST", "/report_asset_materialization/a", "{}", **headers)[0] == 403
    assert server.send("DELETE", "/", **headers)[0] == 403
    assert server.socket(**headers) == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_other_sites_are_rejected_by_what_the_browser_says_of_them(server: Webserver, site: str) -> None:
    """A browser that hides the origin, such as for `<script src>`, still says how the sites are related."""
    for destination in ("script", "image", "iframe", "embed", "empty"):
        headers = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": destination}
        assert server.send("GET", "/server_info", **headers)[0] == 403
    framed = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"}
    assert server.send("GET", "/", **framed)[0] == 403
    assert server.send("POST", "/graphql", "{}", Origin=server.url, Sec_Fetch_Site=site)[0] == 403
    assert server.socket(Origin=server.url, Sec_Fetch_Site=site) == 403
    link = {"Sec_Fetch_Site": site, "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert server.send("GET", "/runs", **link)[0] == 200


def test_the_probe_finds_nothing_here_and_everything_on_an_open_server(server: Webserver) -> None:
    assert accepted_from_other_sites(server.url, FORMS["dagster"]) == []

    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(101 if self.headers["Upgrade"] else 200)
            self.end_headers()

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    with Quiet((HOST, 0), Open) as open_server, serving(open_server):
        found = accepted_from_other_sites(f"http://{HOST}:{open_server.server_port}", "/graphql")
    assert len(found) == 3


@pytest.mark.usefixtures("launching")
def test_its_own_pages_launch_runs_and_open_sockets(server: Webserver) -> None:
    assert json.loads(server.post(LAUNCH)) == {"data": {"launchRun": {"__typename": "LaunchRunSuccess"}}}
    assert server.socket(Origin=server.url, Sec_Fetch_Site="same-origin") == 101
    assert server.send("GET", "/server_info")[0] == 200
    client = DagsterGraphQLClient(HOST, port_number=server.port, headers={"Origin": server.url})
    run_id = client.submit_job_execution("harmless")
    assert server.instance.get_run_by_id(run_id) is not None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for which the site evil.example is on this machine."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH: apt install chromium")
    with sync_playwright() as playwright:
        rules = ["--host-resolver-rules=MAP evil.example 127.0.0.1"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=rules)
        yield browser
        browser.close()


@pytest.fixture
def other_port(server: Webserver) -> Iterator[int]:
    """The port of a site with the page of attempts."""
    page = ATTACK.replace("TARGET", server.url).replace("LAUNCH", quote(LAUNCH)).encode()

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with Quiet((HOST, 0), Site) as site, serving(site):
        yield site.server_port


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost"])
def test_a_page_of_another_origin_reads_and_starts_nothing(browser: Browser, other_port: int, host: str) -> None:
    page = browser.new_page()
    page.goto(f"http://{host}:{other_port}/")
    attempts = page.evaluate("window.attempts")
    assert set(attempts.values()) == {"refused"}, attempts
    assert len(attempts) == 7
    page.close()


def test_a_name_of_another_site_that_leads_here_is_rejected(browser: Browser, server: Webserver) -> None:
    page = browser.new_page()
    answer = page.goto(f"http://evil.example:{server.port}/server_info")
    assert answer is not None
    assert answer.status == 400
    assert "dagster" not in page.content()
    page.close()


@pytest.mark.usefixtures("launching")
def test_its_own_page_in_a_browser_follows_a_run_by_websocket(browser: Browser, server: Webserver) -> None:
    client = DagsterGraphQLClient(HOST, port_number=server.port, headers={"Origin": server.url})
    run_id = client.submit_job_execution("harmless")
    page = browser.new_page(base_url=server.url)
    frames: list[str] = []
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: frames.append(str(frame))))
    page.goto(f"/runs/{run_id}")
    expect(page.get_by_text("Queued").first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(2000)
    assert any("connection_ack" in frame for frame in frames)
    page.close()


def test_linked_and_embedded_pictures_show_on_the_page_of_an_asset(browser: Browser, server: Webserver) -> None:
    """Events of earlier versions hold embedded pictures."""
    embedded = {name: dg.MetadataValue.md(picture_markdown(png(1), name)) for name in ("old", "new")}
    metadata = {**embedded, **with_picture_files({"new": embedded["new"]}, server.home)}
    server.instance.report_runless_asset_event(dg.AssetMaterialization("shells", metadata=metadata))
    page = browser.new_page(base_url=server.url)
    for name in ("old", "new"):
        page.goto("/assets/shells?view=overview")
        row = page.get_by_role("row").filter(has=page.get_by_text(name, exact=True))
        if name == "old":  # the UI shows long Markdown on request
            row.get_by_text("[Show Markdown]").first.click(timeout=60_000)
            row = page.get_by_role("dialog")
        picture = row.locator("img[alt]").first
        expect(picture).to_be_visible(timeout=60_000)
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 48
    page.close()


def test_only_pictures_of_the_home_are_served(server: Webserver) -> None:
    (name,) = linked(with_picture_files({"": dg.MetadataValue.md(picture_markdown(png(2), ""))}, server.home))
    assert server.send("GET", f"/pictures/{name}")[0] == 200
    assert server.send("GET", f"/pictures/{name}", Sec_Fetch_Site="cross-site", Sec_Fetch_Dest="image")[0] == 403
    (server.home / FOLDER / "link.png").symlink_to(server.home / "dagster.yaml")
    for path in ("none.png", "..%2fdagster.yaml", "../dagster.yaml", "link.png", ""):
        status, text = server.send("GET", f"/pictures/{path}")
        assert (status, "telemetry" in text) == (404, False), path
