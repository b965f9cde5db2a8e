package config
import ("testing";"strings";"time";"runtime";"fmt")
func TestZZ(t *testing.T){
 var many strings.Builder
 for i:=0;i<4096;i++{ fmt.Fprintf(&many,"[[listener]]\naddress=\"10.0.%d.%d:80\"\n",i>>8,i&255)}
 var rules strings.Builder
 for i:=0;i<50000;i++{ fmt.Fprintf(&rules,"[[rule]]\nport=%d\nremote=\"10.%d.%d.0/24\"\ntarget=\"/x/%d\"\n",1+i%60000,i>>8,i&255,i)}
 for name,s:=range map[string]string{"list":"a=["+strings.Repeat("1,",2<<20-8)+"]","tabs":"a=["+strings.Repeat("{},",1300000)+"]","deeptabs":strings.Repeat("[[a]]\n[a.a]\n",1<<18)+"\n","keys":manyKeys(350000),"many":many.String(),"rules":rules.String()}{
  var a,b runtime.MemStats; runtime.GC(); runtime.ReadMemStats(&a); st:=time.Now()
  c,err:=Parse("f",[]byte(s),defaults)
  took:=time.Since(st); runtime.ReadMemStats(&b)
  e:=fmt.Sprint(err); if len(e)>200 {e=e[:200]}
  t.Log(name,len(s),took,(b.TotalAlloc-a.TotalAlloc)>>20,"MB",e)
  if c!=nil { st=time.Now(); tb,_,err:=c.Table(); if err!=nil{t.Fatal(err)}; bb,err:=tb.AppendBinary(nil); st2:=time.Now(); tb.Compile(); t.Log(len(bb),err,time.Since(st),time.Since(st2)) }
 }
}
