"""A real browser without a network, driven over Chrome's DevTools protocol: no driver program is needed."""

import json
import os
import shutil
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--mute-audio",
    "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


def program():
    """Path of an installed Chromium or Chrome, or None; the environment's BROWSER comes first."""
    return next(filter(None, map(shutil.which, filter(None, (os.environ.get("BROWSER"), *NAMES)))), None)


class Browser:
    """One tab. `size` is width by height in CSS pixels; `scheme` is what the reader's system prefers, light or dark."""

    def __init__(self, profile):
        import websocket

        self.process = subprocess.Popen(
            [program(), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        port, path = self._address(profile / "DevToolsActivePort")
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=60)
        self.sent, self.session = 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")

    def _address(self, file, patience=60):
        until = time.monotonic() + patience
        while time.monotonic() < until:
            if file.exists() and len(lines := file.read_text().splitlines()) == 2:
                return lines
            time.sleep(0.05)
        self.process.kill()
        raise RuntimeError(f"{program()} did not start within {patience} s")

    def send(self, method, **parameters):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": parameters}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while (reply := json.loads(self.socket.recv())).get("id") != self.sent:
            pass
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return reply["result"]

    def open(self, url, size=(1280, 900), scheme="light"):
        """Load a page and wait until it, its pictures and its equations are there."""
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Emulation.setDeviceMetricsOverride", **screen)
        self.send("Page.navigate", url=url)
        self.run(
            """new Promise(done => {
              const ready = async () => {
                document.querySelectorAll('img').forEach(image => image.loading = 'eager');
                await Promise.allSettled([...document.images].map(image => image.decode()));
                if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
                await document.fonts.ready;
                done(true);
              };
              document.readyState === 'complete' ? ready() : addEventListener('load', ready);
            })"""
        )
        if (reached := self.run("location.href")) != url:
            raise RuntimeError(f"asked for {url}, reached {reached}")

    def run(self, script):
        """The value of a JavaScript expression; a promise is waited for."""
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "script failed"))
        return answer["result"].get("value")

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=20)
