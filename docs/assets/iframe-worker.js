// A Worker in a hidden frame, for a site opened from disk: browsers start no real worker there, and search needs one.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.appendChild(this.frame)
      const scope = this.frame.contentWindow
      scope.document.open()
      scope.document.write("<!doctype html><title>search</title>")
      scope.document.close()
      const load = script => new Promise((resolve, reject) => {
        const element = scope.document.createElement("script")
        element.src = new URL(script, document.baseURI)
        element.onload = resolve
        element.onerror = reject
        scope.document.head.appendChild(element)
      })
      scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      scope.importScripts = (...scripts) => scripts.reduce((done, script) => done.then(() => load(script)), Promise.resolve())
      this.ready = load(url)
    }

    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
