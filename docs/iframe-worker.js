// The theme searches in a worker, which browsers refuse to pages that were opened from a folder. There a hidden frame
// stands in for it: the same script, the same messages, on the page's own thread. (The theme would fetch such a stand-in
// from elsewhere.)
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      // What the script posts is heard here: the frame has no worker's own `postMessage`.
      this.frame.contentWindow.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
      this.ready = new Promise(resolve => {
        const script = this.frame.contentDocument.createElement("script");
        script.src = url;
        script.onload = resolve;
        this.frame.contentDocument.body.append(script);
      });
    }

    // Messages that come before the script is there wait for it, in their order.
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
